/* tests/simt/memory.cc - device memory: an address range of which only the allocations can be touched.
 *
 * Each allocation ends (to 64 bytes) where a page begins that cannot be touched; what lies between holds 0xff, as the allocation does at
 * first, and is looked at when it is freed; AddressSanitizer knows it to the byte. Freed addresses stay forbidden for a while. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <deque>
#include <map>

#include "engine.h"

static const size_t PAGE = 4096, ARENA = (size_t)1 << 36;
enum { ALIGN = 64, QUARANTINE = 16 };

struct allocation {
  size_t bytes;
  char *map; /* whole pages, and one that is never open after them */
  size_t map_bytes;
};

static char *arena, *unused;
static std::map<char *, allocation> live;
static std::map<size_t, std::deque<char *>> freed; /* by map_bytes */
static std::map<char *, size_t> pinned;
static size_t live_bytes;
static int opened;

static bool protects() {
  static const bool on = [] {
    const char *s = getenv("MAV_SIMT_PROTECT");
    return s && *s && *s != '0';
  }();
  return on;
}

size_t memory_limit() {
  static const size_t limit = [] {
    const char *s = getenv("MAV_SIMT_MEMORY_MB");
    return (size_t)(s && *s ? strtoull(s, nullptr, 0) : 4096) << 20;
  }();
  return limit;
}
size_t memory_live() { return live_bytes; }

static void set_open(const allocation &a, bool open) { mprotect(a.map, a.map_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE); }

void memory_open() {
  if (opened++) return;
  fault_watch();
  if (!protects()) return;
  for (auto &i : live) set_open(i.second, true);
}
void memory_close() {
  if (--opened || !protects()) return;
  for (auto &i : live) set_open(i.second, false);
}

static char *take_pages(size_t bytes) {
  if (!arena) {
    void *p = mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    arena = (char *)p;
    unused = arena + PAGE;
  }
  std::deque<char *> &again = freed[bytes];
  if (again.size() > QUARANTINE) {
    char *p = again.front();
    again.pop_front();
    return p;
  }
  if ((size_t)(arena + ARENA - unused) < bytes + PAGE) return nullptr;
  char *p = unused;
  unused += bytes + PAGE;
  return p;
}

void *memory_alloc(size_t bytes) {
  const size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN, pages = (rounded + PAGE - 1) / PAGE * PAGE;
  if (bytes > memory_limit() || live_bytes + bytes > memory_limit()) return nullptr;
  allocation a = {bytes, take_pages(pages), pages};
  if (!a.map || mprotect(a.map, pages, PROT_READ | PROT_WRITE)) return nullptr;
  memset(a.map, 0xff, pages);
  if (!opened && protects()) set_open(a, false);
  char *p = a.map + pages - rounded;
  SIMT_POISON(a.map, (size_t)(p - a.map));
  SIMT_POISON(p + bytes, rounded - bytes);
  live[p] = a;
  live_bytes += bytes;
  return p;
}

static bool clean(const char *p, const char *end) {
  for (; p < end; p++)
    if (*p != (char)0xff) return false;
  return true;
}

bool memory_free(void *block) {
  auto i = live.find((char *)block);
  if (i == live.end()) return false;
  const allocation a = i->second;
  char *p = i->first;
  memory_open();
  SIMT_UNPOISON(a.map, a.map_bytes);
  const char *before = p - a.map > ALIGN ? p - ALIGN : a.map;
  if (!clean(before, p)) fault_report(cudaErrorIllegalAddress, "somebody wrote before an allocation of %zu bytes; seen when it was freed", a.bytes);
  if (!clean(p + a.bytes, a.map + a.map_bytes))
    fault_report(cudaErrorIllegalAddress, "somebody wrote after the end of an allocation of %zu bytes; seen when it was freed", a.bytes);
  memory_close();
  live.erase(i);
  live_bytes -= a.bytes;
  mprotect(a.map, a.map_bytes, PROT_NONE);
  madvise(a.map, a.map_bytes, MADV_DONTNEED);
  freed[a.map_bytes].push_back(a.map);
  return true;
}

void memory_free_all() {
  while (!live.empty()) memory_free(live.begin()->first);
  for (auto &i : pinned) free(i.first);
  pinned.clear();
}

bool memory_is_device(const void *p) { return arena && (const char *)p >= arena && (const char *)p < arena + ARENA; }

static std::map<char *, allocation>::iterator find(const void *p) { /* the allocation that begins at p or before it */
  auto i = live.upper_bound((char *)p);
  return i == live.begin() ? live.end() : --i;
}

bool memory_holds(const void *p, size_t bytes) {
  auto i = find(p);
  return i != live.end() && (size_t)((const char *)p - i->first) + bytes <= i->second.bytes;
}

bool memory_describe(const void *address, char *text, size_t size) {
  if (!memory_is_device(address)) return false;
  const char *p = (const char *)address;
  auto i = find(p);
  if (i != live.end() && p < i->second.map + i->second.map_bytes + PAGE) {
    const long long at = p - i->first;
    if (p < i->first + i->second.bytes)
      snprintf(text, size, "device memory: byte %lld of an allocation of %zu, at %p", at, i->second.bytes, address);
    else
      snprintf(text, size, "device memory: %lld bytes after the start of an allocation of %zu", at, i->second.bytes);
    return true;
  }
  auto next = live.upper_bound((char *)p);
  if (next != live.end() && p >= next->second.map - PAGE)
    snprintf(text, size, "device memory: %lld bytes before an allocation of %zu", (long long)(next->first - p), next->second.bytes);
  else
    snprintf(text, size, "device memory that is not allocated, or freed: %p", address);
  return true;
}

void *pinned_alloc(size_t bytes) {
  void *p;
  if (posix_memalign(&p, 4096, bytes ? bytes : 1)) return nullptr;
  memset(p, 0xff, bytes);
  pinned[(char *)p] = bytes;
  return p;
}
bool pinned_free(void *p) {
  if (!pinned.erase((char *)p)) return false;
  free(p);
  return true;
}
bool pinned_holds(const void *p) {
  auto i = pinned.upper_bound((char *)p);
  if (i == pinned.begin()) return false;
  --i;
  return (size_t)((const char *)p - i->first) < i->second;
}
