/* tests/simt/fiber.h - stacks and the switch between them. */
#ifndef MAV_SIMT_FIBER_H
#define MAV_SIMT_FIBER_H

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#define SIMT_POISON(p, bytes) __asan_poison_memory_region(p, bytes)
#define SIMT_UNPOISON(p, bytes) __asan_unpoison_memory_region(p, bytes)
#else
#define SIMT_POISON(p, bytes) ((void)0)
#define SIMT_UNPOISON(p, bytes) ((void)0)
#endif

enum { FIBER_STACK_BYTES = 128 << 10 }; /* committed as they are touched; below each lies a page that cannot be */

struct fiber {
  void *sp;
  char *low; /* of the stack */
  size_t bytes;
  void *fake; /* AddressSanitizer's */
  fiber *next;
};

extern "C" void simt_switch_stack(void **save, void *to);

/* A fiber that will run main, which must not return; NULL when there is no memory. */
fiber *fiber_get(void (*main)());
/* Its stack is free for the next; a fiber may give itself, if it then leaves for good. */
void fiber_give(fiber *f);
/* From the running fiber `from`, which somebody will resume, or which ends here. */
#ifdef SIMT_ASAN
void fiber_switch(fiber *from, fiber *to, bool ends);
#else
static inline void fiber_switch(fiber *from, fiber *to, bool) { simt_switch_stack(&from->sp, to->sp); }
#endif
/* The first thing that a fiber's main calls. */
void fiber_started();
/* The stack that the caller runs on, as a fiber. */
fiber *fiber_of_thread();
/* Whether p lies in the page below a stack. */
bool fiber_is_guard(const void *p);

#endif
