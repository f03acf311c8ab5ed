/* core/library.c - the backend "cuda" lies in a library of its own, libmav_cuda.so, so that one program serves machines with and
 * without a GPU. It is looked for where the caller says (option library), where MAV_CUDA_LIBRARY says, else beside the file that this
 * code is in, and in folders nearby: as it is built, and as it is installed. It is built from the same source as the core, and checked for it.
 * The library is never unloaded: what is in it has finalizers of its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "runtime.h"

#define OP "runtime_new"
#define NAME "libmav_cuda.so"
#define PATH_BYTES 4096

static const char *op_name(int op) { return mav_op_get(op)->name; }

static const mav__host host = {
    .version = MAV_VERSION,
    .runtime_bytes = sizeof(mav_runtime),
    .diag_set = mav__diag_set,
    .alloc = mav__alloc,
    .free = mav__free,
    .device_count = mav__device_count,
    .device_fails = mav__device_fails,
    .op_name = op_name,
};

/* Its path in `out`, for a library that lies near this code; false: there is none. */
static bool find(char *out) {
  static const char *const near[] = {"", "../", "../lib/", "../../"};
  Dl_info info;
  if (!dladdr(&host, &info) || !info.dli_fname) return false;
  const char *slash = strrchr(info.dli_fname, '/');
  const int folder = slash ? (int)(slash - info.dli_fname) + 1 : 0;
  for (size_t i = 0; i < sizeof near / sizeof *near; i++)
    if (snprintf(out, PATH_BYTES, "%.*s%s%s", folder, info.dli_fname, near[i], NAME) < PATH_BYTES && mav__file_exists(out)) return true;
  return false;
}

mav_err mav__library_open(mav_runtime *rt, const mav_runtime_options *options) {
  char found[PATH_BYTES];
  const char *path = options->library ? options->library : getenv("MAV_CUDA_LIBRARY");
  const char *named = options->library || !path || !*path ? "" : " (MAV_CUDA_LIBRARY)";
  if (!path || !*path) {
    if (!find(found))
      return MAV_RT_FAIL(rt, UNSUPPORTED, OP, "device \"cuda\" needs " NAME ", which is not beside this program; build it (nvcc is "
                         "needed), or name it in MAV_CUDA_LIBRARY");
    path = found;
  }
  rt->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!rt->library) {
    const char *why = dlerror();
    return MAV_RT_FAIL(rt, INVALID, OP, "device \"cuda\": %s%s", why ? why : path, named);
  }
  mav__library *get;
  *(void **)&get = dlsym(rt->library, MAV__LIBRARY_SYMBOL);
  if (!get) return MAV_RT_FAIL(rt, INVALID, OP, "%s is no backend of Mav%s", mav__path_short(path), named);
  rt->host = &host;
  rt->backend = get(&host);
  if (!rt->backend) return MAV_RT_FAIL(rt, INVALID, OP, "%s was built from another source than this program", mav__path_short(path));
  return MAV_OK;
}

void mav__library_close(mav_runtime *rt) {
  if (rt->library) dlclose(rt->library);
}
