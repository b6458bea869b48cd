/* State of dispatch, shared by its own files only. */
#ifndef TSR_DISPATCH_IMPL_H
#define TSR_DISPATCH_IMPL_H

#include "collectives/comm_impl.h"
#include "collectives/dispatch.h"

enum { MOST_STAGES = 2 };

/* The same on the host and on the device; one block where these are one. */
typedef struct mirror {
    tsr_growing host, device;
} mirror;

static inline tsr_status device_room(tsr_device *device, tsr_growing *block, size_t bytes)
{
    return tsr_growing_device(device, TSR_MEM_ACTIVATIONS, bytes, block);
}

static inline tsr_status host_room(tsr_device *device, tsr_growing *block, size_t bytes)
{
    return tsr_growing_staging(device, TSR_MEM_COMM, bytes, block);
}

TSR_NODISCARD tsr_status mirror_reserve(tsr_device *device, mirror *m, size_t bytes);
void mirror_free(tsr_device *device, mirror *m);
/* Queue the copy from the host to the device. */
TSR_NODISCARD tsr_status mirror_send(tsr_device *device, const mirror *m, size_t bytes,
                                     tsr_stream *stream);

static inline void *mirror_on_device(const mirror *m)
{
    return m->device.memory != NULL ? m->device.memory : m->host.memory;
}

/* One lane of a unit. */
typedef struct slot {
    int32_t lane;
    float weight;
} slot;

/* Ranks between which a stage moves units. */
typedef struct stage {
    tsr_comm *host, *rows;
    int size, rank;
    int32_t *destination; /* [P] rank in this stage's group for each rank of the whole group; -1: it
                              is not for this stage to bring anything there */
    tsr_segment *segments; /* [2, size] of an exchange under way */
    int64_t *one_each;     /* [size + 1] 0, 1, ... */
    int64_t *next;         /* [size] for planning */
} stage;

/* What one stage does with the units that it gets. */
typedef struct way {
    int64_t units, sends, receives;
    int64_t *send_begin, *receive_begin; /* [size + 1] in units */
    mirror send_unit;                    /* i32 [sends] unit that each send is a copy of */
    mirror fan; /* i32 [units, width] sends that are copies of a unit, ascending, then -1 */
    int fan_width;
    mirror bounds;     /* i64 [2]: 0, sends */
    tsr_growing slots; /* slot [receives, K] */
} way;

struct tsr_dispatch {
    tsr_dispatch_options options;
    int ranks, rank, nodes, node; /* of the group, this one; nodes: two stages, else 0 */
    int stages;
    stage stage[MOST_STAGES];
    int32_t *itself;      /* [P] 0, 1, ... */
    int32_t *node_of;     /* [P] */
    int64_t row_length;   /* of the table of sizes: units to each rank, then to each node */
    int64_t *own, *table; /* [row_length], [P, row_length] */
    tsr_growing sent, met,
        sum;                /* device: rows to send; of the first stage's units; their f32 sums */
    tsr_growing staged[2];  /* host: rows on their way out and in, where they are staged */
    tsr_growing sent_slots; /* host: slots or numbers to send */
    tsr_growing passing;    /* host: numbers on their way back */
};

struct tsr_dispatch_plan {
    tsr_dispatch *dispatch; /* borrowed */
    way way[MOST_STAGES];
    tsr_growing first; /* slot [tokens, K]: what came from the caller */
    tsr_dispatch_view view;
    mirror offsets, token_of, row_of, row_weight;
};

/* ---- way.c: pure ---- */

/* Which of units' copies go where. slots [units, K]. Fills all but receives. */
TSR_NODISCARD tsr_status way_plan(tsr_device *device, const stage *s, way *w, const slot *slots,
                                  int64_t units, int top_k);

/* Distinct destinations of one unit, ascending; returns how many. */
int way_destinations(const int32_t *destination, const slot *slots, int top_k, int32_t *out);

/* ---- transport.c ---- */

/* Move what lies by sends to where it lies by receives, or back; item_bytes each. Host memory. */
TSR_NODISCARD tsr_status move_on_host(const stage *s, const way *w, const void *from, void *to,
                                      size_t item_bytes, bool is_back, tsr_traffic purpose);

/* The same for rows in device memory. */
TSR_NODISCARD tsr_status move_rows(tsr_dispatch *d, const stage *s, const way *w, const void *from,
                                   void *to, bool is_back, tsr_traffic purpose, tsr_stream *stream);

#endif
