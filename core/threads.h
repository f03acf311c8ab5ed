/* core/threads.h - the threads behind a mavk_team (kernels/team.h). */
#ifndef MAV_CORE_THREADS_H
#define MAV_CORE_THREADS_H

#include "runtime.h"
#include "../kernels/team.h"

typedef struct mav__threads mav__threads;
typedef void mav__threads_fn(void *arg, mavk_thread *t);

/* count threads, the caller's among them. */
mav_err mav__threads_new(mav__threads **out, mav_runtime *rt, int count);
void mav__threads_free(mav__threads *t);
/* Every thread calls fn(arg, thread); returns when all have. fn must leave no claim phase unbalanced between threads. */
void mav__threads_run(mav__threads *t, mav__threads_fn *fn, void *arg);

#endif
