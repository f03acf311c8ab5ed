/* core/comm.c - the ranks that share the work. Only the single rank exists: its all-reduce is a copy. */
#include "comm.h"

mav_err mav_comm_self(mav_comm **out, mav_runtime *rt) {
  *out = mav__alloc(sizeof **out);
  if (!*out) return MAV_RT_NOMEM(rt, "comm_self");
  **out = (mav_comm){.refs = 1, .rt = mav_runtime_retain(rt), .rank = 0, .ranks = 1};
  return MAV_OK;
}

mav_comm *mav_comm_retain(mav_comm *c) {
  c->refs++;
  return c;
}

void mav_comm_release(mav_comm *c) {
  if (!c || --c->refs) return;
  mav_runtime_release(c->rt);
  mav__free(c);
}

int mav_comm_rank(const mav_comm *c) { return c->rank; }
int mav_comm_ranks(const mav_comm *c) { return c->ranks; }
