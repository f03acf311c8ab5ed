/* tests/simt/graph.cc - what a stream captures is a list, and a launch of it adds the list to a queue. */
#include "stream.h"

cudaError_t cudaStreamBeginCapture(cudaStream_t h, cudaStreamCaptureMode mode) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s || s == stream_of(nullptr)) return call_fails(cudaErrorStreamCaptureUnsupported);
  if (s->capture) return call_fails(cudaErrorIllegalState);
  s->capture = new CUgraph_st;
  s->capture_mode = mode;
  s->capture_broken = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t h, cudaGraph_t *g) {
  std::lock_guard<std::recursive_mutex> guard(simt_lock());
  *g = nullptr;
  CUstream_st *s = stream_of(h);
  if (!s || !s->capture) return call_fails(cudaErrorIllegalState);
  CUgraph_st *captured = s->capture;
  s->capture = nullptr;
  const cudaError_t e = s->capture_broken ? call_fails(cudaErrorStreamCaptureInvalidated) : call_begin();
  if (e)
    delete captured;
  else
    *g = captured;
  return e;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t h, cudaStreamCaptureStatus *status) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s) return call_fails(cudaErrorInvalidResourceHandle);
  *status = !s->capture ? cudaStreamCaptureStatusNone : s->capture_broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long) {
  SIMT_CALL();
  CUgraphExec_st *e = new CUgraphExec_st;
  e->nodes = g->nodes; /* never changed, only replaced */
  for (const node_ref &n : g->nodes) e->origin.push_back(n.get());
  *out = e;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  SIMT_CALL();
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t h) {
  SIMT_CALL();
  CUstream_st *s = stream_of(h);
  if (!s || s->capture) return call_fails(s ? cudaErrorNotSupported : cudaErrorInvalidResourceHandle);
  for (const node_ref &n : e->nodes) stream_push(s, n);
  return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info) {
  SIMT_CALL();
  *info = {cudaGraphExecUpdateSuccess, nullptr, nullptr};
  if (e->nodes.size() != g->nodes.size()) info->result = cudaGraphExecUpdateErrorTopologyChanged;
  for (size_t i = 0; i < g->nodes.size() && !info->result; i++)
    if (e->nodes[i]->what != g->nodes[i]->what) *info = {cudaGraphExecUpdateErrorNodeTypeChanged, g->nodes[i].get(), nullptr};
  if (info->result) return call_fails(cudaErrorGraphExecUpdateFailure);
  e->nodes = g->nodes;
  e->origin.clear();
  for (const node_ref &n : g->nodes) e->origin.push_back(n.get());
  return cudaSuccess;
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t e, cudaGraphNode_t node, const cudaKernelNodeParams *p) {
  SIMT_CALL();
  const kernel_info *k = kernel_find(p->func);
  for (size_t i = 0; i < e->nodes.size(); i++) {
    if (e->origin[i] != node || node->what != PIECE_KERNEL) continue;
    if (!k || !p->kernelParams) return call_fails(cudaErrorInvalidValue);
    e->nodes[i] = kernel_node(p->func, k, p->kernelParams[0], p->gridDim, p->blockDim, p->sharedMemBytes, node->l.pdl);
    return cudaSuccess;
  }
  return call_fails(cudaErrorInvalidValue);
}

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t n, cudaKernelNodeParams *p) {
  SIMT_CALL();
  if (n->what != PIECE_KERNEL) return call_fails(cudaErrorInvalidValue);
  *p = {(void *)n->l.kernel, n->l.grid, n->l.block, (unsigned)n->l.shared_bytes, nullptr, nullptr};
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t n, cudaGraphNodeType *type) {
  SIMT_CALL();
  *type = n->what == PIECE_KERNEL ? cudaGraphNodeTypeKernel
          : n->what == PIECE_COPY ? cudaGraphNodeTypeMemcpy
          : n->what == PIECE_FILL ? cudaGraphNodeTypeMemset
                                  : cudaGraphNodeTypeHost;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) {
  SIMT_CALL();
  for (size_t i = 0; nodes && i < *count && i < g->nodes.size(); i++) nodes[i] = g->nodes[i].get();
  *count = g->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
  delete e; /* its nodes live as long as a queue holds them */
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  delete g;
  return cudaSuccess;
}
