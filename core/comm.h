/* core/comm.h - inside a communicator. */
#ifndef MAV_CORE_COMM_H
#define MAV_CORE_COMM_H

#include "runtime.h"

struct mav_comm {
  int refs;
  mav_runtime *rt;
  int rank, ranks;
};

#endif
