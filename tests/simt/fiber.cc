/* tests/simt/fiber.cc - stacks and the switch between them: the registers that a call keeps go to the stack, and the stack is changed. */
#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#ifdef SIMT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
asm(R"( # jmp, not ret: the processor foresees where a jump goes that went there before, but a ret only after its call
.text
.p2align 4
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size simt_switch_stack, .-simt_switch_stack
)");
enum { SAVED_WORDS = 8, ENTRY_WORD = 6 }; /* six registers, the address to return to, and one word so that the entry is aligned like a call */
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size simt_switch_stack, .-simt_switch_stack
)");
enum { SAVED_WORDS = 20, ENTRY_WORD = 1 };
#else
#error "the emulator switches stacks on x86-64 and aarch64"
#endif

enum { GUARD = 4096, STEP = GUARD + FIBER_STACK_BYTES, BATCH = 64 };

static fiber *free_fibers;
static struct { char *low, *high; } batches[256];
static int batch_count;

static bool more_fibers() {
  if (batch_count == (int)(sizeof batches / sizeof *batches)) return false;
  const size_t bytes = (size_t)BATCH * STEP;
  char *p = (char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return false;
  batches[batch_count].low = p, batches[batch_count++].high = p + bytes;
  for (int i = BATCH - 1; i >= 0; i--) {
    char *low = p + (size_t)i * STEP;
    mprotect(low, GUARD, PROT_NONE);
    /* the fiber itself at the top, at varying places, so that the hot ends of stacks do not share a set of a cache */
    fiber *f = (fiber *)(low + STEP - sizeof(fiber) - (size_t)(i * 5 % 64) * 64);
    f->low = low + GUARD;
    f->bytes = (size_t)((char *)f - f->low) & ~(size_t)63;
    f->next = free_fibers;
    free_fibers = f;
  }
  return true;
}

fiber *fiber_get(void (*main)()) {
  if (!free_fibers && !more_fibers()) return nullptr;
  fiber *f = free_fibers;
  free_fibers = f->next;
  SIMT_UNPOISON(f->low, f->bytes); /* what a fault left behind */
  void **words = (void **)(f->low + f->bytes) - SAVED_WORDS;
  for (int i = 0; i < SAVED_WORDS; i++) words[i] = nullptr;
  words[ENTRY_WORD] = (void *)main;
  f->sp = words;
  f->fake = nullptr;
  return f;
}

void fiber_give(fiber *f) {
  f->next = free_fibers;
  free_fibers = f;
}

#ifdef SIMT_ASAN
__attribute__((no_sanitize("address"))) void fiber_switch(fiber *from, fiber *to, bool ends) {
  __sanitizer_start_switch_fiber(ends ? nullptr : &from->fake, to->low, to->bytes);
  simt_switch_stack(&from->sp, to->sp);
  __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
}
#endif

void fiber_started() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

fiber *fiber_of_thread() {
  static thread_local fiber self;
  if (!self.low) {
    pthread_attr_t a;
    void *low;
    pthread_getattr_np(pthread_self(), &a);
    pthread_attr_getstack(&a, &low, &self.bytes);
    pthread_attr_destroy(&a);
    self.low = (char *)low;
  }
  return &self;
}

bool fiber_is_guard(const void *p) {
  for (int i = 0; i < batch_count; i++)
    if ((const char *)p >= batches[i].low && (const char *)p < batches[i].high)
      return (size_t)((const char *)p - batches[i].low) % STEP < GUARD;
  return false;
}
