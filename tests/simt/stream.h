/* tests/simt/stream.h - work that waits, shared by runtime.cc and graph.cc. */
#ifndef MAV_SIMT_STREAM_H
#define MAV_SIMT_STREAM_H

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "engine.h"

struct event_state {
  int64_t recorded = 0, done = 0; /* how often */
  int64_t done_ns = 0;
  CUstream_st *stream = nullptr;
};

enum piece { PIECE_KERNEL, PIECE_COPY, PIECE_FILL, PIECE_HOST, PIECE_FREE, PIECE_RECORD, PIECE_WAIT };

/* One piece of work; a node of a graph too. */
struct CUgraphNode_st {
  piece what;
  launch l; /* argument: points into `argument` */
  std::vector<uint64_t> argument;
  void *to;
  const void *from;
  size_t bytes;
  int value;
  cudaHostFn_t host;
  void *data;
  std::shared_ptr<event_state> event;
  int64_t count; /* of the event: what was recorded, or is waited for */
};
typedef std::shared_ptr<CUgraphNode_st> node_ref;

struct CUgraph_st {
  std::vector<node_ref> nodes;
};
struct CUgraphExec_st {
  std::vector<node_ref> nodes;
  std::vector<const CUgraphNode_st *> origin; /* the graph's nodes that they were made of */
};

struct queued {
  node_ref node;
  run *early;
};
struct CUstream_st {
  std::deque<queued> queue;
  bool blocking;
  CUgraph_st *capture = nullptr;
  bool capture_broken = false;
  cudaStreamCaptureMode capture_mode;
};
struct CUevent_st {
  std::shared_ptr<event_state> state;
};

/* The lock, and what every call does first: an error that sticks is returned, a planted one too. */
#define SIMT_CALL()                                       \
  std::lock_guard<std::recursive_mutex> guard_(simt_lock()); \
  if (cudaError_t e_ = call_begin()) return e_
std::recursive_mutex &simt_lock();
cudaError_t call_begin();
/* Notes an error for cudaGetLastError and returns it. */
cudaError_t call_fails(cudaError_t e);

node_ref kernel_node(const void *kernel, const kernel_info *k, const void *argument, dim3 grid, dim3 block, size_t shared_bytes, bool pdl);
CUstream_st *stream_of(cudaStream_t s); /* NULL: no such stream */
bool any_capture_forbids();             /* a call that may not happen while a capture is open: the capture is broken then */
/* Into the capture, or the queue. */
cudaError_t stream_add(CUstream_st *s, node_ref n);
void stream_push(CUstream_st *s, const node_ref &n);

#endif
