/* core/backend_cuda_blas.c - products of many rows by cuBLASLt, which is opened when the first is asked for: where it is missing, nothing
 * else is.
 *
 * For a matrix of weights of some shape one algorithm is chosen, for ROWS rows, among those that do not split the sum; it is used for any
 * number of rows, so that a row's bits do not depend on it, unless the library says that it cannot; then one is chosen for that number.
 * A new choice runs once, on the product at hand, before any capture (mav__cuda_run_dry): what the library has to load or to reserve is
 * there then. Names and numbers: cuBLAS 13.0 documentation, "Using the cuBLASLt API". */
#define _GNU_SOURCE
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>

#include "backend_cuda.h"

#ifndef MAV_CUBLASLT /* the emulator has its own, which needs no memory */
#define MAV_CUBLASLT "libcublasLt.so.13"
#define WORKSPACE_BYTES ((size_t)32 << 20) /* what the documentation recommends for Hopper */
#else
#define WORKSPACE_BYTES ((size_t)4 << 10)
#endif
#define CHOICES 64
#define ROWS 512

#define FUNCTIONS(X)                                                                                                           \
  X(Create) X(Destroy) X(GetStatusName) X(MatmulDescCreate) X(MatmulDescDestroy) X(MatmulDescSetAttribute)                     \
  X(MatrixLayoutCreate) X(MatrixLayoutDestroy) X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy)                            \
  X(MatmulPreferenceSetAttribute) X(MatmulAlgoGetHeuristic) X(MatmulAlgoCheck) X(Matmul)

typedef struct choice {
  int32_t dtype;
  int64_t N, K, w_stride, rows; /* rows: ROWS, or one that the choice for those could not do */
  cublasLtMatmulAlgo_t algorithm;
} choice;

struct cuda_blas {
#define X(name) __typeof__(cublasLt##name) *name;
  FUNCTIONS(X)
#undef X
  cublasLtHandle_t handle;
  void *workspace;
  choice choice[CHOICES];
  int choices; /* made so far; the oldest go first */
};

/* ---- opening ---------------------------------------------------------------------------------------------------------- */

/* What became of a call; MAV_OK or an error, noted. What takes the device with it is the CUDA runtime's to say. */
static mav_err blas_error(cuda *c, cublasStatus_t status, const char *call, int line) {
  mav_runtime *rt = c->rt;
  if (status == CUBLAS_STATUS_SUCCESS) return MAV_OK;
  enum cudaStreamCaptureStatus captures;
  cudaError_t e = cudaStreamIsCapturing(c->stream, &captures);
  if (!e && captures == cudaStreamCaptureStatusNone) e = cudaStreamQuery(c->stream);
  if (e && e != cudaErrorNotReady) return mav__cuda_error(rt, e, c->op, call, __FILE__, line);
  const mav_err code = status == CUBLAS_STATUS_ALLOC_FAILED ? MAV_ERR_NOMEM : MAV_ERR_DEVICE;
  rt->host->diag_set(&rt->diag, code, c->op, __FILE__, line, 0, "%s: %s (%d)", call, c->blas->GetStatusName(status), (int)status);
  return code;
}

/* Not when the device is lost, or when a test wants the call to fail. */
static mav_err may_call(cuda *c, const char *call, int line) {
  if (c->rt->failed) return mav__cuda_failed(c->rt);
  const cudaError_t e = mav__cuda_injected(c->rt);
  return e ? mav__cuda_error(c->rt, e, c->op, call, __FILE__, line) : MAV_OK;
}

/* A call of the library; MAV_OK or an error. */
#define BLAS(c, name, ...)                                                                                            \
  __extension__({                                                                                                     \
    const mav_err may_ = may_call((c), "cublasLt" #name, __LINE__);                                                   \
    may_ ? may_ : blas_error((c), (c)->blas->name(__VA_ARGS__), "cublasLt" #name, __LINE__);                          \
  })

static mav_err blas_open(cuda *c) {
  mav_runtime *rt = c->rt;
  const char *named = getenv("MAV_CUBLASLT"), *path = named && *named ? named : MAV_CUBLASLT;
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char *why = dlerror();
    return CUDA_FAIL(rt, UNSUPPORTED, c->op,
                     "products of many rows need cuBLASLt: %s; install it (libcublas-13-0), name it in MAV_CUBLASLT, or do without it "
                     "(MAV_CUDA_OFF=blas)",
                     why ? why : path);
  }
  struct cuda_blas *b = rt->host->alloc(sizeof *b);
  if (!b) return CUDA_FAIL(rt, NOMEM, c->op, "out of host memory");
  const char *missing = NULL;
#define X(name) \
  if (!(*(void **)&b->name = dlsym(library, "cublasLt" #name))) missing = "cublasLt" #name;
  FUNCTIONS(X)
#undef X
  dlclose(library); /* it stays */
  c->blas = b;
  mav_err err;
  if (missing) MAV_GOTO(CUDA_FAIL(rt, UNSUPPORTED, c->op, "%s has no %s: cuBLAS 13 is needed (MAV_CUBLASLT names it; MAV_CUDA_OFF=blas does without)", path,
                                    missing));
  MAV_GOTO(mav__cuda_alloc(rt, WORKSPACE_BYTES, false, &b->workspace));
  MAV_GOTO(BLAS(c, Create, &b->handle));
done:
  if (err) mav__cuda_blas_close(c);
  return err;
}

void mav__cuda_blas_close(cuda *c) {
  struct cuda_blas *b = c->blas;
  if (!b) return;
  if (b->handle) b->Destroy(b->handle);
  mav__cuda_free(c->rt, b->workspace, WORKSPACE_BYTES);
  c->rt->host->free(b);
  c->blas = NULL;
}

/* ---- a product ---------------------------------------------------------------------------------------------------------- */

/* As the library sees it, whose matrices lie column after column: y^T (N, rows) = w^T^T x^T. */
typedef struct product {
  cublasLtMatmulDesc_t what;
  cublasLtMatrixLayout_t w, x, y;
} product;

static void product_free(cuda *c, product *p) {
  const struct cuda_blas *b = c->blas;
  if (p->what) b->MatmulDescDestroy(p->what);
  if (p->w) b->MatrixLayoutDestroy(p->w);
  if (p->x) b->MatrixLayoutDestroy(p->x);
  if (p->y) b->MatrixLayoutDestroy(p->y);
}

static mav_err product_new(cuda *c, product *p, const mavk_cuda_gemm *g, int64_t rows) {
  const cudaDataType_t type = g->dtype == MAVK_F8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  mav_err err;
  *p = (product){0};
  MAV_GOTO(BLAS(c, MatmulDescCreate, &p->what, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  MAV_GOTO(BLAS(c, MatmulDescSetAttribute, p->what, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
  MAV_GOTO(BLAS(c, MatrixLayoutCreate, &p->w, type, (uint64_t)g->K, (uint64_t)g->N, g->w_stride));
  MAV_GOTO(BLAS(c, MatrixLayoutCreate, &p->x, type, (uint64_t)g->K, (uint64_t)rows, g->K));
  MAV_GOTO(BLAS(c, MatrixLayoutCreate, &p->y, CUDA_R_32F, (uint64_t)g->N, (uint64_t)rows, g->N));
done:
  if (err) product_free(c, p), *p = (product){0};
  return err;
}

/* The library's best algorithm for so many rows. */
static mav_err choose(cuda *c, const mavk_cuda_gemm *g, int64_t rows, cublasLtMatmulAlgo_t *out) {
  const uint64_t workspace = WORKSPACE_BYTES;
  const uint32_t alignment = 16; /* of weights where they lie; all else is in scratch memory, at multiples of 256 */
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
  cublasLtMatmulPreference_t wish = NULL;
  cublasLtMatmulHeuristicResult_t result = {0};
  product p;
  int found = 0;
  mav_err err;
  MAV_TRY(product_new(c, &p, g, rows));
  MAV_GOTO(BLAS(c, MatmulPreferenceCreate, &wish));
  MAV_GOTO(BLAS(c, MatmulPreferenceSetAttribute, wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
  MAV_GOTO(BLAS(c, MatmulPreferenceSetAttribute, wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes));
  MAV_GOTO(BLAS(c, MatmulPreferenceSetAttribute, wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment));
  MAV_GOTO(BLAS(c, MatmulAlgoGetHeuristic, c->blas->handle, p.what, p.w, p.x, p.y, p.y, wish, 1, &result, &found));
  if (!found || result.state != CUBLAS_STATUS_SUCCESS)
    MAV_GOTO(CUDA_FAIL(c->rt, UNSUPPORTED, c->op, "cuBLASLt cannot multiply %lld rows of %s with (%lld, %lld); MAV_CUDA_OFF=blas does without it",
                       (long long)rows, g->dtype == MAVK_F8 ? "f8" : "bf16", (long long)g->N, (long long)g->K));
  *out = result.algo;
done:
  if (wish) c->blas->MatmulPreferenceDestroy(wish);
  product_free(c, &p);
  return err;
}

/* The algorithm for this weight's shape and so many rows; is_new: it has just been chosen. */
static mav_err choice_for(cuda *c, const mavk_cuda_gemm *g, int64_t rows, const cublasLtMatmulAlgo_t **out, bool *is_new) {
  struct cuda_blas *b = c->blas;
  const int kept = b->choices < CHOICES ? b->choices : CHOICES;
  *is_new = false;
  for (int i = 0; i < kept; i++) {
    const choice *o = &b->choice[i];
    if (o->dtype == g->dtype && o->N == g->N && o->K == g->K && o->w_stride == g->w_stride && o->rows == rows)
      return *out = &o->algorithm, MAV_OK;
  }
  choice made = {g->dtype, g->N, g->K, g->w_stride, rows, {{0}}};
  MAV_TRY(choose(c, g, rows, &made.algorithm));
  choice *o = &b->choice[b->choices++ % CHOICES];
  *o = made;
  *out = &o->algorithm;
  *is_new = true;
  return MAV_OK;
}

static mav_err multiply(cuda *c, const mavk_cuda_gemm *g) {
  static const float one = 1, zero = 0;
  const cublasLtMatmulAlgo_t *algorithm;
  cublasLtMatmulHeuristicResult_t checked = {0};
  product p = {0};
  bool is_new;
  mav_err err;
  if (!c->blas) MAV_TRY(blas_open(c));
  struct cuda_blas *b = c->blas;
  MAV_GOTO(product_new(c, &p, g, g->rows));
  MAV_GOTO(choice_for(c, g, ROWS, &algorithm, &is_new));
  const cublasStatus_t fits = b->MatmulAlgoCheck(b->handle, p.what, p.w, p.x, p.y, p.y, algorithm, &checked);
  if (fits != CUBLAS_STATUS_SUCCESS || checked.workspaceSize > WORKSPACE_BYTES) MAV_GOTO(choice_for(c, g, g->rows, &algorithm, &is_new));
  if (!c->is_dry || is_new)
    MAV_GOTO(BLAS(c, Matmul, b->handle, p.what, &one, g->w, p.w, g->x, p.x, &zero, g->y, p.y, g->y, p.y, algorithm, b->workspace,
                  WORKSPACE_BYTES, c->stream));
  if (!c->is_dry) c->kernels++;
done:
  product_free(c, &p);
  return err;
}

int mav__cuda_gemm(mavk_cuda *k, const mavk_cuda_gemm *g) {
  cuda *c = (cuda *)k;
  c->noted = multiply(c, g);
  return c->noted ? -1 : 0;
}
