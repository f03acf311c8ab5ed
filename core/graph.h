/* core/graph.h - inside a captured graph. */
#ifndef MAV_CORE_GRAPH_H
#define MAV_CORE_GRAPH_H

#include "kv.h"

/* A pointer inside a node's argument structure, and where it points to once memory is planned. */
typedef struct mav__fixup {
  int64_t node;
  size_t at;           /* offset in the argument structure */
  mav__buffer *buffer; /* borrowed from graph->held */
  int64_t offset;      /* bytes */
} mav__fixup;

/* One planned tensor: alive from the node that writes it to the last that reads it. */
typedef struct mav__plan {
  mav__buffer *buffer; /* borrowed from graph->held */
  size_t bytes, offset;
  int64_t first, last;
  bool keep;
} mav__plan;

/* What must be checked at every launch because the host may have changed it. */
typedef struct mav__launch_check {
  const char *op;
  mav_rows *rows;     /* ids below id_limit, sequences below seq_limit; borrowed from graph->held_rows */
  mav_kv *kv;         /* rows fit the cache, when not NULL; borrowed from graph->held_kvs */
  mav_tensor *index;  /* i32 in [0, id_limit), when rows is NULL; retained */
  int64_t id_limit, seq_limit;
  bool moves;          /* see mav__kv_check_rows */
  bool derives;        /* rows are what the graph derives other rows from: see mav__kv_check_ahead */
  int64_t ahead;
  mav_rows *next;      /* trees that rows_advance makes from rows: see mav__rows_check_next; borrowed from graph->held_rows */
} mav__launch_check;

typedef enum mav__graph_state { MAV__GRAPH_CAPTURING, MAV__GRAPH_READY, MAV__GRAPH_DEAD } mav__graph_state;

#define MAV__LIST(type) \
  struct {              \
    type *at;           \
    int64_t count, room; \
  }

struct mav_graph {
  int refs;
  mav_runtime *rt;
  mav_rows *rows;
  mav__graph_state state;
  MAV__LIST(mav__node) nodes;
  MAV__LIST(mav__fixup) fixups;
  MAV__LIST(mav__plan) plans;
  MAV__LIST(mav__buffer *) held; /* one reference each */
  MAV__LIST(mav__launch_check) checks;
  MAV__LIST(mav_rows *) held_rows;
  MAV__LIST(mav_kv *) held_kvs;
  uint32_t arena_version;
  mav_graph_stats stats;
  /* ---- on a device ---- */
  MAV__LIST(mav__buffer *) written;  /* by the nodes; borrowed from held and held_rows */
  void *exec;                        /* the backend's executable; NULL: to be made at the next launch */
  uint64_t ticket;                   /* of the last launch; 0: none */
  int64_t launched_ns;               /* when it was; 0: its end was seen */
};

/* One argument's buffer as a node uses it. */
typedef struct mav__use {
  mav__buffer *buffer;
  size_t at;
  int64_t offset;
  bool written;
} mav__use;

/* Makes room for one more element of a MAV__LIST. */
bool mav__list_grow(void *list, size_t element);

/* A result's place in the plan of the open capture. */
mav_err mav__graph_plan(mav_graph *g, size_t bytes, mav__buffer **out);
/* Appends a node: copies the argument structure, notes which buffers it uses. */
mav_err mav__graph_record(mav_graph *g, int op, const void *args, bool apart, const mav__use *uses, int count);
/* A node writes this buffer, too. */
mav_err mav__graph_note_written(mav_graph *g, mav__buffer *b);
mav_err mav__graph_hold_rows(mav_graph *g, mav_rows *rows);
mav_err mav__graph_hold_kv(mav_graph *g, mav_kv *kv);
mav_err mav__graph_check_at_launch(mav_graph *g, mav__launch_check check);
/* core/plan.c: offsets for all planned tensors; their total size. Tensors alive at the same node never overlap. */
mav_err mav__plan_offsets(mav_graph *g, size_t *total);
/* Runs one check; also used eagerly. */
mav_err mav__check_now(mav_runtime *rt, const mav__launch_check *c);

#endif
