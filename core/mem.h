/* core/mem.h - the library's host allocator: counted, with injected failure for tests. */
#ifndef MAV_CORE_MEM_H
#define MAV_CORE_MEM_H

#include <stddef.h>
#include <stdint.h>

void *mav__alloc(size_t bytes);                 /* zeroed; NULL: out of memory */
void *mav__realloc(void *p, size_t bytes);      /* new part not zeroed; p stays valid on failure */
char *mav__strdup(const char *s);
char *mav__strndup(const char *s, size_t n);
void mav__free(void *p);

int64_t mav__mem_live(void);   /* bytes */
int64_t mav__mem_allocs(void); /* calls so far */
/* The n-th allocation from now fails, once (1 is the next); 0: none. */
void mav__mem_fail_at(int64_t n);

/* The same for devices: bytes that backends took from them, and the n-th call to one from now that fails. */
typedef enum mav__fault { MAV__FAULT_NONE, MAV__FAULT_CALL, MAV__FAULT_DEVICE /* is lost with it */ } mav__fault;
int64_t mav__device_live(void);
void mav__device_count(int64_t bytes);
void mav__device_fail_at(int64_t n, mav__fault fault);
mav__fault mav__device_fails(void); /* asked once a call */

#endif
