/* core/mav.h - the one public header of libmav.
 *
 * A runtime owns one device backend, its memory and its error state: it is created first and freed last (every object
 * holds a reference to it). Tensors are views on buffers. Ops (kernels/ops.def) run at once, or are recorded while a
 * graph is being captured; a launched graph replays with planned memory and allocates nothing.
 *
 * Threads: a runtime and everything made from it belong to one thread at a time.
 * Errors: functions return mav_err (0, or negative). Those that take a runtime leave the diagnostic in it
 * (mav_runtime_diag); the others fill the mav_diag they are given, which may be NULL. Nothing here aborts or exits.
 * Ownership: new/free sole owner, retain/release shared, open/close outside world, get borrowed.
 * Dimension letters (T, D, H, K, C, E, F, V) are those of kernels/ops.def.
 *
 * Example: examples/embed.c.
 */
#ifndef MAV_H
#define MAV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MAV_API __attribute__((visibility("default")))
#define MAV_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define MAV_API
#define MAV_PRINTF(f, a)
#endif

#define MAV_VERSION "0.1.0"

/* ---- errors --------------------------------------------------------------------------------------------------- */

#define MAV_ERR_MAP(X)                                                                \
  X(OK, 0, "no error")                                                                \
  X(NOMEM, -1, "out of memory")                                                       \
  X(INVALID, -2, "invalid argument")                                                  \
  X(SHAPE, -3, "shapes do not agree")                                                 \
  X(DTYPE, -4, "wrong dtype")                                                         \
  X(RANGE, -5, "value out of range")                                                  \
  X(STATE, -6, "not possible in this state")                                          \
  X(IO, -7, "input or output failed")                                                 \
  X(NOTFOUND, -8, "not found")                                                        \
  X(FORMAT, -9, "malformed file")                                                     \
  X(UNSUPPORTED, -10, "not supported")                                                \
  X(FULL, -11, "no room left")                                                        \
  X(DEVICE, -12, "the device failed")

typedef enum mav_err {
#define X(name, code, text) MAV_ERR_##name = (code),
  MAV_ERR_MAP(X)
#undef X
  MAV_OK = 0
} mav_err;

/* What went wrong, where, and what to do. A plain value: copy it freely. */
typedef struct mav_diag {
  mav_err code;
  char op[48];      /* the operation: "safetensors_open", "norm_qkv" */
  char text[464];   /* one line: what was wrong, where, what to do */
  const char *file; /* source position that raised it (static string) */
  int line;
  long native;      /* errno or the library's own code; 0 when none */
} mav_diag;

MAV_API const char *mav_err_name(mav_err e); /* "SHAPE" */
MAV_API const char *mav_err_text(mav_err e); /* "shapes do not agree" */

/* ---- runtime -------------------------------------------------------------------------------------------------- */

typedef struct mav_runtime mav_runtime;

typedef struct mav_runtime_options {
  const char *device;  /* "cuda", "cpu", "ref" or "auto": cuda where it works, else cpu; NULL: "auto" */
  int threads;         /* of the cpu team; on cuda, that unpack weights; 0: one per processor that this process may use */
  const char *isa;     /* cpu kernels: "avx2", "avx512"; NULL: MAV_CPU_ISA, else the best of this processor */
  const char *library; /* of cuda: path of libmav_cuda.so; NULL: MAV_CUDA_LIBRARY, else beside this library or program */
  const char *off;     /* of cuda: what not to use, of "pdl,graphs,prefetch,spatial,tensor,blas"; NULL: MAV_CUDA_OFF */
} mav_runtime_options;

typedef struct mav_memory_stats {
  int64_t host_bytes_live, host_allocs;     /* every allocation of the library; allocs counts calls since the start */
  int64_t device_bytes_live, device_bytes_max;
  int64_t arena_bytes;                      /* planned memory shared by all graphs */
} mav_memory_stats;

MAV_API mav_err mav_runtime_new(mav_runtime **out, const mav_runtime_options *options, mav_diag *diag);
MAV_API mav_runtime *mav_runtime_retain(mav_runtime *rt);
MAV_API void mav_runtime_release(mav_runtime *rt);
MAV_API const mav_diag *mav_runtime_diag(const mav_runtime *rt); /* of the last call that failed */
MAV_API const char *mav_runtime_device(const mav_runtime *rt);   /* "ref", "cpu", "cuda" */
MAV_API const char *mav_runtime_isa(const mav_runtime *rt);      /* "c", "avx2", "avx512", "sm_90" */
MAV_API int mav_runtime_threads(const mav_runtime *rt);
/* Device "auto" chose the processor: why; NULL where it did not, or had no choice. Valid as long as rt. */
MAV_API const char *mav_runtime_fallback(const mav_runtime *rt);
/* Waits until the device has done all that it was given (ops that run at once are only on their way). Nothing on a host. Errors: DEVICE;
 * STATE while a capture is open. */
MAV_API mav_err mav_runtime_wait(mav_runtime *rt);
MAV_API void mav_runtime_memory(const mav_runtime *rt, mav_memory_stats *out);
MAV_API int64_t mav_now_ns(void); /* monotonic clock */
/* Bytes read from memory per second, in GB/s: every thread of the team sums a buffer of `bytes` (256 MiB or more leaves
 * the caches), best of `repeats`. Uses its own memory for the duration of the call. */
MAV_API mav_err mav_runtime_bandwidth(mav_runtime *rt, size_t bytes, int repeats, double *gb_per_s);

/* ---- dtypes, tensors ------------------------------------------------------------------------------------------ */

typedef enum mav_dtype {
  MAV_DTYPE_F32,
  MAV_DTYPE_BF16,
  MAV_DTYPE_F16,
  MAV_DTYPE_F8, /* e4m3fn */
  MAV_DTYPE_I32,
  MAV_DTYPE_I64,
  MAV_DTYPE_U8,
  MAV_DTYPE_COUNT
} mav_dtype;

#define MAV_DIMS_MAX 4

MAV_API const char *mav_dtype_name(mav_dtype t);           /* "f32" "bf16" "f16" "f8" "i32" "i64" "u8" */
MAV_API size_t mav_dtype_bytes(mav_dtype t);
MAV_API bool mav_dtype_parse(const char *name, mav_dtype *out); /* also "fp8", "e4m3", "float32", ... */

/* A view: dtype, shape, strides (in elements) and offset on a shared buffer. Tensors are reference counted. */
typedef struct mav_tensor mav_tensor;

/* New zeroed memory. While a graph is captured this is still plain memory that outlives it, not planned memory. */
MAV_API mav_err mav_tensor_new(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape);
/* Wraps the caller's memory, contiguous; it must outlive the tensor. On host backends. */
MAV_API mav_err mav_tensor_wrap(mav_tensor **out, mav_runtime *rt, mav_dtype dtype, int dims, const int64_t *shape, void *data);
MAV_API mav_tensor *mav_tensor_retain(mav_tensor *t);
MAV_API void mav_tensor_release(mav_tensor *t);

MAV_API mav_runtime *mav_tensor_runtime(const mav_tensor *t);
MAV_API mav_dtype mav_tensor_dtype(const mav_tensor *t);
MAV_API int mav_tensor_dims(const mav_tensor *t);
MAV_API int64_t mav_tensor_size(const mav_tensor *t, int dim);   /* elements along one dimension */
MAV_API int64_t mav_tensor_stride(const mav_tensor *t, int dim);
MAV_API int64_t mav_tensor_count(const mav_tensor *t);           /* all elements */
MAV_API bool mav_tensor_is_contiguous(const mav_tensor *t);
MAV_API bool mav_tensor_is_planned(const mav_tensor *t);         /* belongs to a graph's plan: not readable */

/* Views share the buffer. slice: elements [first, first + count) of one dimension, every step-th. */
MAV_API mav_err mav_tensor_slice(mav_tensor **out, mav_tensor *t, int dim, int64_t first, int64_t count, int64_t step);
MAV_API mav_err mav_tensor_reshape(mav_tensor **out, mav_tensor *t, int dims, const int64_t *shape); /* contiguous t */
MAV_API mav_err mav_tensor_transpose(mav_tensor **out, mav_tensor *t, int dim_a, int dim_b);
MAV_API mav_err mav_tensor_select(mav_tensor **out, mav_tensor *t, int dim, int64_t index); /* drops the dimension */

/* Copies src into dst, converting dtypes (as op `cast` does) and following both sides' strides. Not while capturing. Between two
 * runtimes bytes are copied, through the host: both contiguous, of one dtype. */
MAV_API mav_err mav_tensor_copy_into(mav_tensor *dst, mav_tensor *src);
/* Raw bytes of a contiguous tensor. */
MAV_API mav_err mav_tensor_read(mav_tensor *t, void *dst, size_t bytes);
MAV_API mav_err mav_tensor_write(mav_tensor *t, const void *src, size_t bytes);
/* Host pointer of a contiguous tensor on a host backend; on a device an error. */
MAV_API mav_err mav_tensor_data(mav_tensor *t, void **out);
/* One element by flat index in row-major order, as a double; set converts. */
MAV_API mav_err mav_tensor_get(mav_tensor *t, int64_t index, double *out);
MAV_API mav_err mav_tensor_set(mav_tensor *t, int64_t index, double value);
/* Value i of packed values in host memory, as get and set convert; put does not check the range. */
MAV_API double mav_dtype_value(mav_dtype t, const void *p, int64_t i);
MAV_API void mav_dtype_put(mav_dtype t, void *p, int64_t i, double value);

/* How a weight was quantized; travels with the tensor and its row slices. scale: f32, shape () or (1), (N), (E) or (E, N):
 * value = code * scale. act says how activations that meet the weight are rounded. */
typedef enum mav_act { MAV_ACT_NONE, MAV_ACT_STATIC, MAV_ACT_DYNAMIC } mav_act;
MAV_API mav_err mav_tensor_set_scale(mav_tensor *t, mav_tensor *scale, mav_act act, float in_scale);
MAV_API mav_tensor *mav_tensor_scale(const mav_tensor *t); /* borrowed; NULL when none */
/* dst (f8, with the shape of src) = e4m3(src / scale), scale[..., n] = max|row| / 448 (1 for a zero row) per output row;
 * attaches the scale to dst. src: (N, D) or (E, N, D), any strides. */
MAV_API mav_err mav_tensor_quantize_into(mav_tensor *dst, mav_tensor *src);

/* A weight as the device's products read it fastest, with its scale: on cuda a new tensor for contiguous f8 (N, D) and (E, N, D) with
 * N a multiple of 16 and D of 32; t itself (a new reference) everywhere else. A shuffled tensor can be a weight of ops, be cut by
 * experts and by blocks of 16 rows, and nothing else. Not while capturing. */
MAV_API mav_err mav_tensor_shuffle(mav_tensor **out, mav_tensor *t);
MAV_API bool mav_tensor_is_shuffled(const mav_tensor *t);

/* ---- rows: the ragged batch -------------------------------------------------------------------------------------- */

/* T token rows, each with (id, sequence, position, slot, parent): see mavk_rows in kernels/mavk.h for the contract. */
typedef struct mav_rows mav_rows;

MAV_API mav_err mav_rows_new(mav_rows **out, mav_runtime *rt, int64_t count);
/* Rows [first, first + count) of the same table: what ops write or read there, they write or read here. */
MAV_API mav_err mav_rows_slice(mav_rows **out, mav_rows *r, int64_t first, int64_t count);
MAV_API mav_rows *mav_rows_retain(mav_rows *r);
MAV_API void mav_rows_release(mav_rows *r);
MAV_API int64_t mav_rows_count(const mav_rows *r);
/* Fills row i of a table; seq < 0 makes it idle. parent: an earlier row of the table or -1. slot: -1 means the position. */
MAV_API mav_err mav_rows_set(mav_rows *r, int64_t i, int32_t id, int32_t seq, int32_t pos, int32_t parent, int32_t slot);
MAV_API mav_tensor *mav_rows_ids(mav_rows *r); /* borrowed: i32 (T), the memory the device reads */

/* ---- paged KV cache and sequences --------------------------------------------------------------------------------- */

typedef struct mav_kv mav_kv;

typedef struct mav_kv_options {
  int layers;
  const int32_t *chunk; /* (layers) attention chunk of each layer, 0: full. NULL: all full */
  int kv_heads, head_dim;
  const int32_t *layer_kv_heads, *layer_head_dim; /* (layers) where layers differ; NULL: kv_heads, head_dim in all */
  mav_dtype dtype;          /* F32, BF16 or F8: e4m3(k / k_scale), e4m3(v / v_scale) */
  const float *k_scale, *v_scale; /* (layers) of an F8 cache, above 0; NULL: 1 in all */
  int64_t tokens;           /* capacity over all sequences, rounded up to pages */
  int sequences;            /* most sequences at a time; 0: 64 */
  int page;                 /* slots a page, a power of two; 0: 32 */
  int64_t context_max;      /* longest sequence; 0: tokens */
} mav_kv_options;

MAV_API mav_err mav_kv_new(mav_kv **out, mav_runtime *rt, const mav_kv_options *options);
MAV_API mav_kv *mav_kv_retain(mav_kv *kv);
MAV_API void mav_kv_release(mav_kv *kv);
MAV_API int mav_kv_layers(const mav_kv *kv);
MAV_API int mav_kv_sequences(const mav_kv *kv); /* most at a time */
MAV_API mav_dtype mav_kv_dtype(const mav_kv *kv);
MAV_API int64_t mav_kv_pages_free(const mav_kv *kv);  /* of the scarcest kind of layer */
MAV_API int64_t mav_kv_pages_live(const mav_kv *kv);  /* over all kinds of layers; 0 when no sequence is left */

/* Sequences are small integers. A sequence has a length (committed tokens) and a floor: layers with an attention chunk drop
 * the blocks before the previous one, so it cannot be truncated below that. `key` keys its sampling noise. */
MAV_API mav_err mav_kv_sequence_new(mav_kv *kv, int64_t key, int *seq);
MAV_API mav_err mav_kv_sequence_free(mav_kv *kv, int seq);
/* A new sequence with the same tokens; whole pages are shared until one side writes, the last one is copied. */
MAV_API mav_err mav_kv_sequence_fork(mav_kv *kv, int seq, int64_t key, int *out);
MAV_API mav_err mav_kv_sequence_truncate(mav_kv *kv, int seq, int64_t length);
MAV_API int64_t mav_kv_sequence_length(const mav_kv *kv, int seq); /* -1: no such sequence */
MAV_API int64_t mav_kv_sequence_floor(const mav_kv *kv, int seq);
/* Makes slots [length, length + count) writable: pages are allocated, shared ones copied. Call before rows that append. */
MAV_API mav_err mav_kv_sequence_reserve(mav_kv *kv, int seq, int64_t count);
/* count appended tokens become part of the sequence. Frees what chunked layers no longer need. */
MAV_API mav_err mav_kv_sequence_commit(mav_kv *kv, int seq, int64_t count);

/* ---- ranks --------------------------------------------------------------------------------------------------------- */

typedef struct mav_comm mav_comm;
MAV_API mav_err mav_comm_self(mav_comm **out, mav_runtime *rt); /* one rank: all-reduce is a copy */
MAV_API mav_comm *mav_comm_retain(mav_comm *c);
MAV_API void mav_comm_release(mav_comm *c);
MAV_API int mav_comm_rank(const mav_comm *c);
MAV_API int mav_comm_ranks(const mav_comm *c);

/* ---- ops ----------------------------------------------------------------------------------------------------------- */

typedef enum mav_arg_kind {
  MAV_ARG_IN,    /* tensor */
  MAV_ARG_INDEX, /* i32 tensor, every element in [0, limit) */
  MAV_ARG_MUT,   /* tensor read and written */
  MAV_ARG_WEIGHT,
  MAV_ARG_ROWS,
  MAV_ARG_ROWS_OUT, /* rows that the op writes; shape: the letter of their number */
  MAV_ARG_KV,
  MAV_ARG_COMM,
  MAV_ARG_NUM,
  MAV_ARG_INT,
  MAV_ARG_DTYPE,
  MAV_ARG_OUT,
} mav_arg_kind;

#define MAV_ARGS_MAX 16
#define MAV_REQUIRED (-1e300) /* default of a number that must be given */

typedef struct mav_arg_desc {
  const char *name;
  mav_arg_kind kind;
  bool optional;
  const char *shape; /* see ops.def */
  uint32_t types;    /* mask of 1 << mav_dtype */
  const char *limit; /* INDEX: the dimension letter that bounds it */
  double value;      /* NUM, INT, DTYPE: the default */
  size_t offset;     /* in the kernel's argument structure */
  const char *doc;
} mav_arg_desc;

typedef struct mav_op_desc {
  const char *name, *doc, *source;
  double tolerance;
  int args;
  size_t args_bytes; /* sizeof the argument structure */
  mav_arg_desc arg[MAV_ARGS_MAX];
} mav_op_desc;

MAV_API int mav_op_count(void);
MAV_API const mav_op_desc *mav_op_get(int op); /* static */
MAV_API int mav_op_find(const char *name);     /* -1: none */

/* One argument, in the slot of its description. given == false: the default, or for a result: allocate it. */
typedef struct mav_arg {
  bool given;
  union {
    mav_tensor *tensor;
    mav_rows *rows;
    struct {
      mav_kv *cache;
      int layer;
    } kv;
    mav_comm *comm;
    double number;
  };
} mav_arg;

/* Checks, infers the results' shapes, allocates results that were not given (a new reference in args[i].tensor), then
 * runs the op, or records it when a capture is open. Eager calls return when the op is done; on cuda when it is on its way: what reads
 * its results waits. */
MAV_API mav_err mav_op_call(mav_runtime *rt, int op, mav_arg *args);
/* Bytes an op reads and writes, from its arguments (all experts that its indices name once, read when they are on the host). */
MAV_API double mav_op_bytes(mav_runtime *rt, int op, const mav_arg *args);

/* ---- graphs -------------------------------------------------------------------------------------------------------- */

typedef struct mav_graph mav_graph;

/* Between begin and end every op on the runtime is recorded; results become planned tensors that live in an arena shared by
 * all graphs, reused as soon as their last reader has run. One capture at a time. */
MAV_API mav_err mav_graph_begin(mav_graph **out, mav_runtime *rt, mav_rows *rows);
/* Gives a planned tensor memory of its own, so that it can be read after a launch. Before end. */
MAV_API mav_err mav_graph_keep(mav_graph *g, mav_tensor *t);
MAV_API mav_err mav_graph_end(mav_graph *g);
MAV_API void mav_graph_abort(mav_graph *g); /* gives a begun capture up; the graph can only be released */
MAV_API mav_graph *mav_graph_retain(mav_graph *g);
MAV_API void mav_graph_release(mav_graph *g);
MAV_API mav_rows *mav_graph_rows(mav_graph *g); /* borrowed */
MAV_API mav_err mav_graph_launch(mav_graph *g); /* may return before the work is done */
MAV_API mav_err mav_graph_wait(mav_graph *g);   /* blocks until the last launch is done */
MAV_API bool mav_graph_poll(mav_graph *g);      /* true: done */

typedef struct mav_graph_stats {
  int64_t ops, launches;
  int64_t kernels; /* that a launch starts on a device; on a host backend one for every op */
  int64_t planned_bytes;   /* arena with reuse */
  int64_t unplanned_bytes; /* what the same tensors would take without reuse */
  int64_t last_ns;         /* of the last launch */
} mav_graph_stats;
MAV_API void mav_graph_get_stats(const mav_graph *g, mav_graph_stats *out);
/* Runs the graph once, timing each op; ns and op have room for stats.ops. */
MAV_API mav_err mav_graph_profile(mav_graph *g, int *op, int64_t *ns);

/* ---- speculation ----------------------------------------------------------------------------------------------------- */

/* The speculative decode loop of one sequence, a step at a time: drafts, verification, acceptance, commit or rollback. Who
 * drafts, what a graph computes and which drafts are accepted is the caller's; this keeps the order of things.
 *
 * Drafts form a tree, level by level, in one row table: row 0 is the last token, which is not in the cache yet; every row of
 * level d - 1 has widths[d - 1] children in level d, parent by parent. A chain has widths of 1. A step uses levels 0..depth:
 * a prefix of the table, so a captured graph takes a slice of it. */
typedef struct mav_spec mav_spec;

#define MAV_SPEC_ROWS_MAX 64

typedef enum mav_spec_state {
  MAV_SPEC_STATE_IDLE,        /* root set, no drafts */
  MAV_SPEC_STATE_DRAFTED,     /* drafts of a depth wait in the table */
  MAV_SPEC_STATE_VERIFYING,   /* launched */
  MAV_SPEC_STATE_COMMITTED,   /* every level was accepted; otherwise like IDLE */
  MAV_SPEC_STATE_ROLLED_BACK, /* drafts were rejected; otherwise like IDLE */
  MAV_SPEC_STATE_ERROR,       /* only begin helps */
} mav_spec_state;

typedef struct mav_spec_stats {
  int64_t steps, drafted, accepted, emitted; /* levels drafted and accepted; emitted = accepted + steps */
} mav_spec_stats;

/* depth may be 0: plain decoding. */
MAV_API mav_err mav_spec_new(mav_spec **out, mav_kv *kv, int depth, const int32_t *widths);
MAV_API mav_spec *mav_spec_retain(mav_spec *s);
MAV_API void mav_spec_release(mav_spec *s);
MAV_API mav_rows *mav_spec_tree(mav_spec *s);                 /* borrowed: the whole table */
MAV_API mav_kv *mav_spec_kv(mav_spec *s);                     /* borrowed */
MAV_API int mav_spec_depth(const mav_spec *s);                /* the deepest level */
MAV_API int64_t mav_spec_size(const mav_spec *s, int depth);  /* rows of levels 0..depth */
MAV_API mav_spec_state mav_spec_get_state(const mav_spec *s);
MAV_API const char *mav_spec_state_name(mav_spec_state state); /* "rolled back" */
MAV_API void mav_spec_get_stats(const mav_spec *s, mav_spec_stats *out);
/* The sequence to continue and its last token, which is not in the cache. From any state; forgets drafts. */
MAV_API mav_err mav_spec_begin(mav_spec *s, int seq, int32_t id);
/* Drafts from the host: ids of rows 1 .. size(depth) - 1. */
MAV_API mav_err mav_spec_draft(mav_spec *s, int depth, const int32_t *ids);
/* Drafts that a graph wrote into the table. depth 0: none. */
MAV_API mav_err mav_spec_drafted(mav_spec *s, int depth);
/* Reserves slots (for the tree, and for the next one after it), then launches a graph whose rows are levels 0..depth of the
 * table. Slots reserved: at most twice the table. */
MAV_API mav_err mav_spec_verify(mav_spec *s, mav_graph *g);
/* Ends the step when the graph (and others launched meanwhile) is done. accepted and choice: i32, one per verified row, as of
 * op accept; accepted may be NULL when only the root was verified. Commits the accepted path, drops the rest, makes the last
 * token the root. advanced: a graph did that already (op rows_advance). ids has room for depth + 1 emitted tokens. */
MAV_API mav_err mav_spec_commit(mav_spec *s, mav_tensor *accepted, mav_tensor *choice, bool advanced, int32_t *ids, int *count);
/* Asserts what must hold in the present state; MAV_ERR_STATE names what does not. */
MAV_API mav_err mav_spec_check(const mav_spec *s);

/* ---- weights on disk ------------------------------------------------------------------------------------------------ */

/* One safetensors file, mapped and fully checked: header, bounds, overlaps, sizes. Entries come in the order of their data. */
typedef struct mav_safetensors mav_safetensors;
typedef struct mav_safetensors_entry {
  const char *name;
  const char *unreadable; /* why no tensor can be made of it ("dtype F64 is not supported"); NULL: one can */
  mav_dtype dtype;        /* unreadable: perhaps MAV_DTYPE_COUNT */
  int dims;               /* unreadable: perhaps 0 */
  int64_t shape[MAV_DIMS_MAX];
  const void *data; /* mapped, read only; aligned as the file's writer left it */
  size_t bytes;
} mav_safetensors_entry;

MAV_API mav_err mav_safetensors_open(mav_safetensors **out, const char *path, mav_diag *diag);
MAV_API void mav_safetensors_close(mav_safetensors *s);
MAV_API int mav_safetensors_count(const mav_safetensors *s);
MAV_API const mav_safetensors_entry *mav_safetensors_get(const mav_safetensors *s, int i);
/* Writes tensors (contiguous) to path by way of a temporary name, synced and renamed. */
MAV_API mav_err mav_safetensors_write(const char *path, int count, const char *const *names, mav_tensor *const *tensors, mav_diag *diag);

/* A Hugging Face directory: model.safetensors, or the shards of model.safetensors.index.json; or the path of one file. */
typedef struct mav_weights mav_weights;
MAV_API mav_err mav_weights_open(mav_weights **out, mav_runtime *rt, const char *dir);
MAV_API mav_weights *mav_weights_retain(mav_weights *w);
MAV_API void mav_weights_release(mav_weights *w);
MAV_API int mav_weights_count(const mav_weights *w);
MAV_API const char *mav_weights_name(const mav_weights *w, int i);
MAV_API const mav_safetensors_entry *mav_weights_entry(const mav_weights *w, const char *name); /* NULL: none */
/* A read-only tensor on the mapped file (a copy where the file left it misaligned). */
MAV_API mav_err mav_weights_get(mav_weights *w, const char *name, mav_tensor **out);

/* ---- packs ---------------------------------------------------------------------------------------------------------- */

/* One rank's weights in one file, as the runtime wants them: docs/pack-format.md. Opening maps the file and checks the header,
 * every place and size; it reads no weight. Chunks of a tensor are stored raw or as LZ4. A chunk's hash is checked when read or
 * check first meets it; what a mapped tensor shows is not checked. */
typedef struct mav_pack mav_pack;

typedef struct mav_pack_info {
  const char *path, *meta; /* meta: JSON text of an object: source, recipe, model, ...; whatever the writer was given */
  int rank, ranks;
  uint64_t chunk_bytes, chunks, file_bytes;
} mav_pack_info;

typedef struct mav_pack_entry {
  const char *name;
  mav_dtype dtype;
  int dims;
  int64_t shape[MAV_DIMS_MAX];
  const char *layout; /* order of the elements; "row": row-major */
  const char *scale;  /* name of the tensor that is its scale; NULL: none */
  mav_act act;
  float in_scale;          /* act static */
  uint64_t chunk, chunks;  /* the first one, and how many */
  size_t bytes, stored;    /* of the tensor; of its chunks in the file */
  const void *data;        /* every chunk is raw: mapped, read only, on a page boundary; else NULL */
} mav_pack_entry;

MAV_API mav_err mav_pack_open(mav_pack **out, const char *path, mav_diag *diag);
MAV_API mav_pack *mav_pack_retain(mav_pack *p);
MAV_API void mav_pack_release(mav_pack *p);
MAV_API const mav_pack_info *mav_pack_get_info(const mav_pack *p);
MAV_API int mav_pack_count(const mav_pack *p);
MAV_API const mav_pack_entry *mav_pack_get(const mav_pack *p, int i); /* NULL: no such index */
MAV_API int mav_pack_find(const mav_pack *p, const char *name);       /* -1: none */
/* Bytes [begin, begin + bytes) of tensor i, by so many threads (0: one per processor). Any thread may call it. */
MAV_API mav_err mav_pack_read(const mav_pack *p, int i, size_t begin, size_t bytes, void *dst, int threads, mav_diag *diag);
/* The same without a copy: checks the hashes of the chunks that hold these bytes, before a mapped tensor shows them. */
MAV_API mav_err mav_pack_check(const mav_pack *p, int i, size_t begin, size_t bytes, int threads, mav_diag *diag);
/* Reads every chunk of tensor i: hashes, what is compressed, and the zeros behind each. */
MAV_API mav_err mav_pack_verify(const mav_pack *p, int i, int threads, mav_diag *diag);
/* A read-only tensor with its scale attached: on the mapped file where all chunks are raw, else a copy. Layout "row", or "m16n8k16",
 * which stays as it is on cuda and becomes rows elsewhere. */
MAV_API mav_err mav_pack_tensor(mav_pack *p, int i, mav_runtime *rt, mav_tensor **out);

/* What a pack will hold. The tensors' bytes come later, in this order. */
typedef struct mav_pack_item {
  const char *name;
  mav_dtype dtype;
  int dims;
  int64_t shape[MAV_DIMS_MAX];
  const char *layout; /* NULL: "row" */
  const char *scale;  /* NULL: none */
  mav_act act;        /* of a tensor with a scale */
  float in_scale;     /* act static */
  bool compress;      /* LZ4 for chunks where it saves a tenth; else all raw */
} mav_pack_item;

typedef struct mav_pack_plan {
  const char *meta;   /* JSON text of an object; NULL: {} */
  int rank, ranks;    /* ranks 0: one */
  size_t chunk_bytes; /* a multiple of 4096 up to 1 GiB; 0: 16 MiB */
  size_t sync_bytes;  /* written between syncs: the most that a crash loses; 0: 256 MiB */
  int count;
  const mav_pack_item *items;
  bool fresh; /* drop what an earlier writer left, whatever its plan */
  /* While the chunks of an earlier writer are read again: how far that is. False: stop. NULL: none. */
  bool (*progress)(void *user, uint64_t done, uint64_t total);
  void *user;
} mav_pack_plan;

/* Writes PATH.part and PATH.journal; finish renames the one to PATH and removes the other, so that a pack of that name is a
 * whole one. What an earlier writer of the same plan left is taken up at the last chunk that is there undamaged; of another
 * plan: an error, unless fresh. The finished file depends on the plan and the bytes alone, not on interruptions. */
typedef struct mav_pack_writer mav_pack_writer;
MAV_API mav_err mav_pack_writer_open(mav_pack_writer **out, const char *path, const mav_pack_plan *plan, mav_diag *diag);
/* What put expects next: a tensor (the count of items: all is there) and the first of its bytes. */
MAV_API void mav_pack_writer_next(const mav_pack_writer *w, int *tensor, uint64_t *begin);
/* More bytes of the tensor that is next, in any pieces. After an error of the world the writer can only be closed. */
MAV_API mav_err mav_pack_writer_put(mav_pack_writer *w, int tensor, const void *data, size_t bytes, mav_diag *diag);
MAV_API mav_err mav_pack_writer_finish(mav_pack_writer *w, mav_diag *diag);
/* Frees it. Not finished: whole chunks stay for the next writer. */
MAV_API void mav_pack_writer_close(mav_pack_writer *w);

/* ---- GGUF ------------------------------------------------------------------------------------------------------------ */

/* One GGUF file (llama.cpp), mapped and fully checked: metadata by key, tensors by name. */
typedef struct mav_gguf mav_gguf;

typedef enum mav_gguf_type { /* of metadata, as the format numbers them */
  MAV_GGUF_U8,
  MAV_GGUF_I8,
  MAV_GGUF_U16,
  MAV_GGUF_I16,
  MAV_GGUF_U32,
  MAV_GGUF_I32,
  MAV_GGUF_F32,
  MAV_GGUF_BOOL,
  MAV_GGUF_STRING,
  MAV_GGUF_ARRAY,
  MAV_GGUF_U64,
  MAV_GGUF_I64,
  MAV_GGUF_F64,
} mav_gguf_type;

typedef struct mav_gguf_value {
  const char *key;
  mav_gguf_type type, of; /* of: of the elements of an array; else type */
  uint64_t count;         /* elements of an array; else 1 */
  const void *data;       /* unaligned: use mav_gguf_next */
} mav_gguf_value;

typedef struct mav_gguf_item {
  uint64_t index;  /* from 1 */
  int64_t integer; /* bits of a U64 */
  double real;
  const char *text; /* a string: not terminated, any bytes; else NULL */
  size_t bytes;
} mav_gguf_item;

typedef struct mav_gguf_entry {
  const char *name, *type; /* "bf16", "q8_0", "q4_k", ... */
  const char *unreadable;  /* why no tensor can be made of it; NULL: one can */
  mav_dtype dtype;         /* of such tensors: q8_0 becomes f32 */
  int dims;
  int64_t shape[MAV_DIMS_MAX]; /* outermost first, as everywhere here */
  bool is_blocks;              /* stored in blocks that share a scale */
  const void *data;
  size_t bytes; /* in the file */
  uint64_t offset;
} mav_gguf_entry;

MAV_API mav_err mav_gguf_open(mav_gguf **out, const char *path, mav_diag *diag);
MAV_API mav_gguf *mav_gguf_retain(mav_gguf *g);
MAV_API void mav_gguf_release(mav_gguf *g);
MAV_API int mav_gguf_count(const mav_gguf *g);
MAV_API const mav_gguf_entry *mav_gguf_get(const mav_gguf *g, int i); /* NULL: no such index */
MAV_API int mav_gguf_find(const mav_gguf *g, const char *name);       /* -1: none */
MAV_API int mav_gguf_keys(const mav_gguf *g);
MAV_API const mav_gguf_value *mav_gguf_get_key(const mav_gguf *g, int i);
MAV_API int mav_gguf_find_key(const mav_gguf *g, const char *key);
/* The next element of a value; *at is NULL before the first. False: there is none left. */
MAV_API bool mav_gguf_next(const mav_gguf_value *v, const void **at, mav_gguf_item *item);
/* Rows [first, first + count) of all but the last dimension, as (count, columns): read-only on the mapped file, or widened. */
MAV_API mav_err mav_gguf_rows(mav_gguf *g, int i, mav_runtime *rt, int64_t first, int64_t count, mav_tensor **out);

/* ---- tokenizer ------------------------------------------------------------------------------------------------------- */

/* tokenizer.json: byte-level BPE with added tokens. Independent of any runtime; safe to share between threads. */
typedef struct mav_tokenizer mav_tokenizer;
typedef enum mav_encode_flags {
  MAV_ENCODE_BOS = 1,     /* prepend what the post-processor prepends */
  MAV_ENCODE_SPECIAL = 2, /* special tokens in the text become single ids (else they are plain text) */
} mav_encode_flags;

MAV_API mav_err mav_tokenizer_open(mav_tokenizer **out, const char *path, mav_diag *diag); /* file or directory */
MAV_API mav_tokenizer *mav_tokenizer_retain(mav_tokenizer *t);
MAV_API void mav_tokenizer_release(mav_tokenizer *t);
MAV_API int mav_tokenizer_size(const mav_tokenizer *t); /* one more than the largest id */
/* *ids is allocated; free it with mav_free. text is UTF-8; invalid bytes are an error that names their offset. */
MAV_API mav_err mav_tokenizer_encode(mav_tokenizer *t, const char *text, size_t bytes, int flags, int32_t **ids, size_t *count, mav_diag *diag);
/* Raw bytes of one id (not terminated); special: whether it is a special token. NULL: no such id. */
MAV_API const char *mav_tokenizer_piece(const mav_tokenizer *t, int32_t id, size_t *bytes, bool *special);
MAV_API int32_t mav_tokenizer_find(const mav_tokenizer *t, const char *token); /* exact text (" the"), special or not; -1: none */
/* Text of ids; invalid UTF-8 becomes U+FFFD per maximal invalid subpart. *text is allocated and terminated; mav_free it. */
MAV_API mav_err mav_tokenizer_decode(mav_tokenizer *t, const int32_t *ids, size_t count, bool skip_special, char **text, size_t *bytes, mav_diag *diag);

/* Streaming decoder: gives text as soon as it is complete UTF-8, holds incomplete sequences back. */
typedef struct mav_detokenizer mav_detokenizer;
MAV_API mav_err mav_detokenizer_new(mav_detokenizer **out, mav_tokenizer *t, bool skip_special, mav_diag *diag);
MAV_API void mav_detokenizer_free(mav_detokenizer *d);
/* *text is valid until the next call. finish: flush an incomplete sequence as U+FFFD. */
MAV_API mav_err mav_detokenizer_push(mav_detokenizer *d, int32_t id, const char **text, size_t *bytes, mav_diag *diag);
MAV_API mav_err mav_detokenizer_finish(mav_detokenizer *d, const char **text, size_t *bytes, mav_diag *diag);

MAV_API void mav_free(void *p); /* memory that a function above allocated for the caller */

#ifdef __cplusplus
}
#endif
#endif
