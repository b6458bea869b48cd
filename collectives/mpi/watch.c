/* Who is to blame when a wait has no answer.
 *
 *   healthy ranks                                   stuck rank
 *   wait, no progress for timeout_s - window
 *   first one: word to all others on the watch -->  (delivered, never read)
 *   others, wherever they wait: hear it within
 *   a tenth of a second and send theirs at once
 *   all: collect words until everybody has spoken,
 *   or the window is nearly over; tell all whom
 *   they have heard
 *   who was heard by nobody is named, else who was
 *   heard by some only: the network between them
 *
 * A rank that waits on any communicator of the family hears the words and answers, one that comes
 * late too. So who is silent waits for nobody: it is lost, stuck, or busy for too long. */
#include "collectives/mpi/mpi_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { TAG_WORD = 1 };

static const double longest_rest_s = 0.3; /* of the window, for hearing who heard whom */

static word *slot(const watch *self, int i)
{
    return (word *)(void *)(self->words + (size_t)i * self->word_bytes);
}

/* The own last word has a place of its own, as MPI may still read the first. */
static const word *newest(const watch *self, int rank)
{
    return slot(self, rank == self->rank && slot(self, self->size)->is_last ? self->size : rank);
}

tsr_status mpi_watch_take(int size, watch **watch_out)
{
    const size_t word_bytes = sizeof(word) + ((size_t)size + 63) / 64 * sizeof(uint64_t);
    void *block = NULL;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof(watch) + ((size_t)size + 1) * word_bytes, &block));
    watch *made = block;
    made->handle = MPI_COMM_NULL;
    made->size = size;
    made->users = 1;
    made->word_bytes = word_bytes;
    (void)pthread_mutex_init(&made->lock, NULL);
    *watch_out = made;
    return TSR_OK;
}

int mpi_watch_open(watch *self, MPI_Comm parent)
{
    const int rc = mpi_duplicate(parent, &self->handle);

    return rc == MPI_SUCCESS ? MPI_Comm_rank(self->handle, &self->rank) : rc;
}

watch *mpi_watch_share(watch *self)
{
    (void)pthread_mutex_lock(&self->lock);
    ++self->users;
    (void)pthread_mutex_unlock(&self->lock);
    return self;
}

void mpi_watch_release(watch *self)
{
    (void)pthread_mutex_lock(&self->lock);
    const bool is_last = --self->users == 0;
    (void)pthread_mutex_unlock(&self->lock);
    if (!is_last) {
        return;
    }
    if (self->handle != MPI_COMM_NULL && MPI_Comm_free(&self->handle) != MPI_SUCCESS) {
        tsr_log(TSR_LOG_WARN, "a watch of %d ranks was not freed by MPI", self->size);
    }
    (void)pthread_mutex_destroy(&self->lock);
    tsr_mem_free(self);
}

/* ---- words; held: lock ---------------------------------------------------------------------- */

static void listen(watch *self)
{
    int here = 1;

    while (here) {
        MPI_Status status;
        if (MPI_Iprobe(MPI_ANY_SOURCE, TAG_WORD, self->handle, &here, &status) != MPI_SUCCESS) {
            here = 0;
        }
        if (here) {
            word *from = slot(self, status.MPI_SOURCE);
            /* it is here and short: this does not wait */
            from->is_heard = MPI_Recv(from, (int)self->word_bytes, MPI_BYTE, status.MPI_SOURCE,
                                      TAG_WORD, self->handle, MPI_STATUS_IGNORE) == MPI_SUCCESS;
        }
    }
}

/* How many ranks have spoken, or have said their last. */
static int count_speakers(const watch *self, bool last_ones)
{
    int count = 0;

    for (int rank = 0; rank < self->size; ++rank) {
        const word *said = newest(self, rank);
        count += said->is_heard && (said->is_last || !last_ones);
    }
    return count;
}

static void send_to_all(const watch *self, const word *own)
{
    for (int rank = 0; rank < self->size; ++rank) {
        MPI_Request request = MPI_REQUEST_NULL;
        if (rank != self->rank && MPI_Isend(own, (int)self->word_bytes, MPI_BYTE, rank, TAG_WORD,
                                            self->handle, &request) == MPI_SUCCESS) {
            (void)MPI_Request_free(&request); /* the word stays where it is: a dead user leaks it */
        }
    }
}

static void say_first(const watch *self, const char *operation)
{
    word *own = slot(self, self->rank);

    own->step = tsr_comm_phase(own->phase);
    (void)snprintf(own->operation, sizeof own->operation, "%s", operation);
    own->is_heard = true;
    send_to_all(self, own);
}

static void say_last(const watch *self)
{
    word *own = slot(self, self->size);

    memcpy(own, slot(self, self->rank), self->word_bytes);
    for (int rank = 0; rank < self->size; ++rank) {
        own->heard[rank / 64] |= (uint64_t)slot(self, rank)->is_heard << rank % 64;
    }
    own->is_last = true;
    send_to_all(self, own);
}

/* One turn of the round; is it over? */
static bool take_turn(watch *self, const char *operation, double left_s, double rest_s)
{
    if (!newest(self, self->rank)->is_heard) {
        say_first(self, operation);
    }
    listen(self);
    if (!newest(self, self->rank)->is_last &&
        (left_s < rest_s || count_speakers(self, false) == self->size)) {
        say_last(self);
    }
    return left_s < 0 || count_speakers(self, true) == self->size;
}

bool mpi_watch_listen(watch *self)
{
    (void)pthread_mutex_lock(&self->lock);
    listen(self);
    const int others = count_speakers(self, false) - newest(self, self->rank)->is_heard;
    (void)pthread_mutex_unlock(&self->lock);
    return others > 0;
}

/* ---- the message; held: lock ---------------------------------------------------------------- */

typedef enum kind {
    SILENT, /* nobody has heard it, as far as is known here */
    TORN,   /* some have, some have not */
    HEARD
} kind;

static kind kind_of(const watch *self, int rank)
{
    bool has_heard = slot(self, rank)->is_heard, has_not = !has_heard;

    for (int other = 0; other < self->size; ++other) {
        const word *said = newest(self, other);
        if (other != rank && said->is_heard && said->is_last) {
            const bool has = (said->heard[rank / 64] >> rank % 64 & 1) != 0;
            has_heard = has_heard || has;
            has_not = has_not || !has;
        }
    }
    return !has_heard ? SILENT : has_not ? TORN : HEARD;
}

static bool is_same_place(const word *a, const word *b)
{
    return a->step == b->step && strcmp(a->phase, b->phase) == 0 &&
           strcmp(a->operation, b->operation) == 0;
}

typedef struct text {
    char *begin;
    size_t size;
} text;

static void append(text to, const char *more)
{
    const size_t length = strlen(to.begin);

    (void)snprintf(to.begin + length, to.size - length, "%s", more);
}

/* "gradient reduce-scatter (step 14)"; the operation where no phase was set. */
static void append_place(const word *said, bool with_operation, text to)
{
    char step[32];

    if (with_operation || said->phase[0] == '\0') {
        append(to, said->operation);
    }
    if (said->phase[0] != '\0') {
        append(to, with_operation ? " of " : "");
        append(to, said->phase);
    }
    if (said->step >= 0) {
        (void)snprintf(step, sizeof step, " (step %" PRId64 ")", said->step);
        append(to, step);
    }
}

/* Ranks that are told together: "rank 2" or "ranks 0 1 3". */
typedef struct list {
    char numbers[400];
    int count;
} list;

static void add(list *to, int rank)
{
    char number[16];

    (void)snprintf(number, sizeof number, " %d", rank);
    append((text){to->numbers, sizeof to->numbers}, number);
    ++to->count;
}

static void append_list(const list *ranks, const char *one_does, const char *they_do, text to)
{
    append(to, ranks->count == 1 ? "rank" : "ranks");
    append(to, ranks->numbers);
    append(to, ranks->count == 1 ? one_does : they_do);
}

/* Those of the ranks [count], NULL: 0, 1, ..., that are of one kind, and the others. */
static void divide(const watch *self, const int *ranks, int count, kind asked, list *of_kind,
                   list *others)
{
    *of_kind = *others = (list){0};
    for (int i = 0; i < count; ++i) {
        const int rank = ranks != NULL ? ranks[i] : i;
        add(kind_of(self, rank) == asked ? of_kind : others, rank);
    }
}

/* All wait, so for different things: say who is where, each place once. */
static void append_places(const watch *self, text to)
{
    for (int rank = 0; rank < self->size; ++rank) {
        const word *said = newest(self, rank);
        list here = {0};
        bool is_told = false;

        for (int other = 0; other < self->size; ++other) {
            if (is_same_place(newest(self, other), said)) {
                is_told = is_told || other < rank;
                add(&here, other);
            }
        }
        if (!is_told) {
            append(to, rank == 0 ? "" : ", ");
            append_list(&here, " in ", " in ", to);
            append_place(said, true, to);
        }
    }
}

static void explain(const watch *self, const int *ranks, int count, text to)
{
    list blamed, others;

    divide(self, ranks, count, SILENT, &blamed, &others);
    if (blamed.count == 0) { /* somebody waited for may wait for one of the rest */
        divide(self, NULL, self->size, SILENT, &blamed, &others);
    }
    if (blamed.count > 0) {
        append_list(&blamed, " does not respond (", " do not respond (", to);
        append_list(&others, " does): ", " do): ", to);
        append(to, blamed.count == 1 ? "it is lost or stuck" : "they are lost or stuck");
        return;
    }
    divide(self, NULL, self->size, TORN, &blamed, &others);
    if (blamed.count > 0) {
        append_list(&blamed, " does", " do", to);
        append(to, " not respond to all ranks, only to some: a network between them is down");
        return;
    }
    append(to, "all ranks respond, but wait for each other: ");
    append_places(self, to);
}

void mpi_watch_ask(watch *self, const char *operation, const int *ranks, int count, double window_s,
                   char *message, size_t size)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    const double end = MPI_Wtime() + window_s;
    const double rest_s = window_s / 4 < longest_rest_s ? window_s / 4 : longest_rest_s;
    bool is_over = false;

    while (!is_over) {
        (void)nanosleep(&pause, NULL);
        (void)pthread_mutex_lock(&self->lock);
        is_over = take_turn(self, operation, end - MPI_Wtime(), rest_s);
        if (is_over) {
            message[0] = '\0';
            append_place(newest(self, self->rank), false, (text){message, size});
            append((text){message, size}, ": ");
            explain(self, ranks, count, (text){message, size});
        }
        (void)pthread_mutex_unlock(&self->lock);
    }
}
