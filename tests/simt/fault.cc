/* tests/simt/fault.cc - what goes wrong in a kernel ends its launch, with a line on stderr.
 *
 * A signal in a kernel: the handler notes it and returns into a function that leaves the fiber for good. Elsewhere the handler before
 * ours, or the default action, gets it, after a line if the address was the device's. */
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <initializer_list>

#include "engine.h"

fault_state simt_fault_now;

static struct {
  int signal, code;
  void *address, *ip;
} noted;
static struct sigaction before[32];
alignas(64) static char landing_stack[64 << 10];

void fault_set(cudaError_t error, const char *where, const char *format, va_list args) {
  if (simt_fault_now.error) return; /* the first counts */
  simt_fault_now.error = error;
  int n = snprintf(simt_fault_now.text, sizeof simt_fault_now.text, "%s%s", where, *where ? ": " : "");
  if (n < (int)sizeof simt_fault_now.text) vsnprintf(simt_fault_now.text + n, sizeof simt_fault_now.text - (size_t)n, format, args);
  fprintf(stderr, "simt: %s (%s)\n", simt_fault_now.text, cudaGetErrorName(error));
}

void fault_report(cudaError_t error, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fault_set(error, "", format, args);
  va_end(args);
}

extern "C" const char *simt_fault_text(void) { return simt_fault_now.text; }

extern "C" __attribute__((used, no_sanitize("address"))) void simt_land() {
  engine_leave();
  _exit(126);
}

static void on_signal(int number, siginfo_t *info, void *context) {
  ucontext_t *u = (ucontext_t *)context;
  if (engine_is_inside() && !noted.signal) {
    noted.signal = number;
    noted.code = info->si_code;
    noted.address = info->si_addr;
    char *top = landing_stack + sizeof landing_stack;
#if defined(__x86_64__)
    noted.ip = (void *)u->uc_mcontext.gregs[REG_RIP];
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)simt_land;
    u->uc_mcontext.gregs[REG_RSP] = (greg_t)(top - 8); /* as after a call */
#else
    noted.ip = (void *)u->uc_mcontext.pc;
    u->uc_mcontext.pc = (uintptr_t)simt_land;
    u->uc_mcontext.sp = (uintptr_t)top;
#endif
    return;
  }
  char text[256], line[320];
  if (number == SIGSEGV && memory_describe(info->si_addr, text, sizeof text)) {
    int n = snprintf(line, sizeof line, "simt: the host touched device memory: %s\n", text);
    if (write(2, line, (size_t)n) < 0) {}
  }
  const struct sigaction *old = &before[number];
  if (old->sa_flags & SA_SIGINFO && old->sa_sigaction) {
    old->sa_sigaction(number, info, context);
    return;
  }
  signal(number, SIG_DFL); /* the instruction runs again, and ends the process */
}

void fault_watch() {
  static thread_local bool has_stack; /* for signals: what overflowed cannot be used */
  if (!has_stack) {
    has_stack = true;
    stack_t old, mine = {};
    if (!sigaltstack(nullptr, &old) && old.ss_flags & SS_DISABLE) {
      mine.ss_size = 64 << 10;
      mine.ss_sp = mmap(nullptr, mine.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* the thread's, for good */
      sigaltstack(&mine, nullptr);
    }
  }
  struct sigaction a = {}, now;
  if (!sigaction(SIGSEGV, nullptr, &now) && now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_signal) return;
  a.sa_sigaction = on_signal;
  a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP}) sigaction(number, &a, &before[number]);
}

/* The source line, where addr2line is there and the object has lines. */
static void source_line(void *ip, char *text, size_t size) {
  Dl_info info;
  *text = 0;
  if (!dladdr(ip, &info) || !info.dli_fname) return;
  const size_t offset = (size_t)((char *)ip - (char *)info.dli_fbase);
  snprintf(text, size, "%s+0x%zx", info.dli_fname, offset);
  char command[512];
  snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
  FILE *f = popen(command, "r");
  if (!f) return;
  char line[256];
  if (fgets(line, sizeof line, f) && line[0] != '?') {
    line[strcspn(line, "\n")] = 0;
    snprintf(text, size, "%s", line);
  }
  pclose(f);
}

bool fault_take_signal(char *text, size_t size, cudaError_t *error) {
  if (!noted.signal) return false;
  char what[256], line[300];
  source_line(noted.ip, line, sizeof line);
  *error = cudaErrorLaunchFailure;
  switch (noted.signal) {
    case SIGSEGV:
    case SIGBUS:
      *error = cudaErrorIllegalAddress;
      if (noted.signal == SIGBUS || (noted.code == SI_KERNEL && !noted.address)) {
        *error = cudaErrorMisalignedAddress;
        snprintf(what, sizeof what, "a misaligned access, or an address that no machine has");
      } else if (fiber_is_guard(noted.address)) {
        *error = cudaErrorHardwareStackError;
        snprintf(what, sizeof what, "more than %d KB of local memory", FIBER_STACK_BYTES >> 10);
      } else if (!engine_describe(noted.address, what, sizeof what) && !memory_describe(noted.address, what, sizeof what)) {
        snprintf(what, sizeof what, "no memory at %p", noted.address);
      }
      break;
    case SIGFPE: snprintf(what, sizeof what, "an integer division by 0"); break;
    default: /* what -fsanitize=alignment (and, where all is sanitized, =undefined) makes of a failed check */
      *error = cudaErrorMisalignedAddress;
      snprintf(what, sizeof what, "a misaligned access (or a trap: undefined behaviour, where all of it is looked for)");
  }
  snprintf(text, size, "%s; at %s", what, line);
  noted.signal = 0;
  return true;
}
