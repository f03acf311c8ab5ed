/* tests/simt/blas.cc - cuBLASLt's stand-in: cublasLt.h. A product is a kernel on the emulated stream, so captures hold it and its faults
 * are found; it waits for the kernel before it entirely, as the library's do. */
#include <cublasLt.h>

#include <initializer_list>

#include "../../kernels/numeric.h"

enum { BLAS_THREADS = 32, BLAS_ALGORITHM = 7, BLAS_COLUMNS = 512, BLAS_ALIGNMENT = 256 };

/* In cublasLtMatmulAlgo_t. */
enum { A_TAG, A_N, A_K, A_TYPE, A_COLUMNS, A_ALIGNMENT };

struct cublasLtContext {
  int unused;
};
struct simt_blas_product {
  cublasOperation_t a = CUBLAS_OP_N;
};
struct simt_blas_matrix {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t stride;
};
struct simt_blas_wish {
  uint64_t workspace = 0;
  uint32_t schemes = 7, alignment_a = BLAS_ALIGNMENT;
};

const char *cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  return *handle = new cublasLtContext{}, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return delete handle, CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *p, cublasComputeType_t compute, cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  return *p = new simt_blas_product{}, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p) {
  return delete p, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t p, cublasLtMatmulDescAttributes_t what, const void *value,
                                              size_t bytes) {
  if (what != CUBLASLT_MATMUL_DESC_TRANSA || bytes != sizeof p->a) return CUBLAS_STATUS_INVALID_VALUE;
  return p->a = *(const cublasOperation_t *)value, CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *m, cudaDataType_t type, uint64_t rows, uint64_t columns, int64_t stride) {
  if (stride < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
  return *m = new simt_blas_matrix{type, rows, columns, stride}, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t m) {
  return delete m, CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
  return *p = new simt_blas_wish{}, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
  return delete p, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what,
                                                    const void *value, size_t bytes) {
  if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == sizeof p->workspace)
    p->workspace = *(const uint64_t *)value;
  else if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && bytes == sizeof p->schemes)
    p->schemes = *(const uint32_t *)value;
  else if (what == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && bytes == sizeof p->alignment_a)
    p->alignment_a = *(const uint32_t *)value;
  else
    return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

static size_t type_bytes(cudaDataType_t t) {
  return t == CUDA_R_8F_E4M3 ? 1 : t == CUDA_R_16BF ? 2 : 4;
}

static cublasStatus_t check(cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                            cublasLtMatrixLayout_t d) {
  if (p->a != CUBLAS_OP_T || a->type != b->type || a->type == CUDA_R_32F || c->type != CUDA_R_32F || d->type != CUDA_R_32F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a->rows != b->rows || a->columns != d->rows || b->columns != d->columns || c->rows != d->rows || c->columns != d->columns)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (a->type == CUDA_R_8F_E4M3 && b->columns % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (cublasLtMatrixLayout_t m : {a, b, c, d})
    if (m->stride * type_bytes(m->type) % 16 || !m->rows || !m->columns) return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t wish, int most,
                                              cublasLtMatmulHeuristicResult_t *out, int *found) {
  *found = 0;
  const cublasStatus_t status = check(p, a, b, c, d);
  if (status || most < 1) return status;
  if (wish->schemes != CUBLASLT_REDUCTION_SCHEME_NONE) return CUBLAS_STATUS_NOT_SUPPORTED;
  *out = {};
  const uint64_t data[] = {BLAS_ALGORITHM, a->columns, a->rows, (uint64_t)a->type, b->columns, wish->alignment_a};
  memcpy(out->algo.data, data, sizeof data);
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algorithm,
                                       cublasLtMatmulHeuristicResult_t *out) {
  *out = {};
  out->algo = *algorithm;
  const uint64_t *data = algorithm->data;
  if (data[A_TAG] != BLAS_ALGORITHM || data[A_N] != a->columns || data[A_K] != a->rows || data[A_TYPE] != (uint64_t)a->type)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (b->columns != data[A_COLUMNS] && (data[A_COLUMNS] != BLAS_COLUMNS || b->columns % 32)) return CUBLAS_STATUS_NOT_SUPPORTED;
  return check(p, a, b, c, d);
}

struct blas_job {
  const void *w, *x; /* (N, K), (rows, K) */
  float *y;          /* (rows, N) */
  int64_t rows, N, K, w_stride, x_stride, y_stride;
  bool codes;
};

static float blas_element(const blas_job &j, const void *p, int64_t at) {
  return j.codes ? mavk_f32_from_f8(((const uint8_t *)p)[at]) : mavk_f32_from_bf16(((const uint16_t *)p)[at]);
}

__global__ void simt_blas(const blas_job j) {
  const int64_t row = blockIdx.y;
  for (int64_t n = (int64_t)blockIdx.x * BLAS_THREADS + threadIdx.x; n < j.N; n += (int64_t)gridDim.x * BLAS_THREADS) {
    float sum = 0;
    for (int64_t k = 0; k < j.K; k++) sum += blas_element(j, j.w, n * j.w_stride + k) * blas_element(j, j.x, row * j.x_stride + k);
    j.y[row * j.y_stride + n] = sum;
  }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t p, const void *alpha, const void *a, cublasLtMatrixLayout_t la,
                              const void *b, cublasLtMatrixLayout_t lb, const void *beta, const void *c, cublasLtMatrixLayout_t lc, void *d,
                              cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algorithm, void *, size_t, cudaStream_t s) {
  cublasLtMatmulHeuristicResult_t checked;
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle, p, la, lb, lc, ld, algorithm, &checked);
  if (status) return status;
  if (*(const float *)alpha != 1 || *(const float *)beta != 0 || c != d) return CUBLAS_STATUS_NOT_SUPPORTED;
  if ((uintptr_t)a % algorithm->data[A_ALIGNMENT] || ((uintptr_t)b | (uintptr_t)d) % BLAS_ALIGNMENT) return CUBLAS_STATUS_NOT_SUPPORTED;
  const blas_job j = {a,          b,          (float *)d, (int64_t)ld->columns,      (int64_t)ld->rows, (int64_t)la->rows,
                      la->stride, lb->stride, ld->stride, la->type == CUDA_R_8F_E4M3};
  simt_kernel(simt_blas);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)((j.N + BLAS_THREADS - 1) / BLAS_THREADS), (unsigned)j.rows);
  config.blockDim = dim3(BLAS_THREADS);
  config.stream = s;
  void *arguments[] = {(void *)&j};
  return cudaLaunchKernelExC(&config, (const void *)simt_blas, arguments) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
