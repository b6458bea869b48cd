/* The engine behind cuemu.h: runs the blocks of a launch one after the other, and the threads of a
 * block as fibres that switch where they wait for each other.
 *
 * A fault (threads at different barriers, a deadlock, a write past shared memory) is printed, the
 * block is abandoned, and the launch ends with cudaErrorLaunchFailure, as on a GPU. */
#include "tests/emulation/cuemu.h"

#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef __x86_64__
#error "fibres are written for x86-64"
#endif

uint3 cuemu_thread, cuemu_block;
dim3 cuemu_block_dim, cuemu_grid_dim;

namespace
{
enum : unsigned {
    MAX_THREADS = 1024,
    WARP = 32,
    WORDS = MAX_THREADS / 64,
    STACK_BYTES = 128 << 10,
    PAGE = 4096,
    SHARED_MAX = 163 << 10, /* of the smallest GPU that we build for, sm_80 */
    STATIC_SHARED_MAX = 48 << 10,
    SHARED_ENTRIES = 32,
    FENCE = 256, /* bytes behind each piece of shared memory */
    ARGS_MAX = 4096
};
const uint32_t fence_pattern = 0xffa5ffa5u; /* a NaN as f32, f64 and bf16 */

struct lane_call { /* what a fibre brought to a warp operation */
    cuemu_op op;
    unsigned mask, source;
    uint64_t value, result;
    const char *file;
    int line;
};

struct fiber {
    void *stack_pointer;
    uint3 index;
    lane_call call;
};

struct warp {
    unsigned alive, arrived; /* lanes that run, lanes that wait for other lanes */
};

struct shared_piece {
    const void *key;
    size_t offset, bytes;
};

struct launch {
    void (*call)(const void *);
    dim3 grid, block;
    size_t shared_bytes;
    alignas(16) unsigned char args[ARGS_MAX];
};

struct engine {
    fiber fibers[MAX_THREADS];
    warp warps[MAX_THREADS / WARP];
    uint64_t ready[WORDS];
    unsigned threads, live, at_barrier, current;
    unsigned laggard; /* warp that runs only when no other can; beyond the last: none */
    const char *barrier_file;
    int barrier_line;
    void *main_stack_pointer;
    char *stacks;
    unsigned char *shared;
    shared_piece pieces[SHARED_ENTRIES];
    unsigned piece_count;
    size_t shared_used;
    const launch *now;
    bool is_running; /* still so at the next launch: the block was abandoned */
    char fault[400];
} e;

extern "C" void cuemu_swap(void **save, void *to);
/* The callee-saved registers only: a few nanoseconds, and no system call for the signal mask. */
__asm__(".text\n.local cuemu_swap\n.type cuemu_swap,@function\n"
        "cuemu_swap:\n"
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
        ".size cuemu_swap,.-cuemu_swap\n");

void set_ready(unsigned thread)
{
    e.ready[thread / 64] |= 1ull << thread % 64;
}

void set_waiting(unsigned thread)
{
    e.ready[thread / 64] &= ~(1ull << thread % 64);
}

/* First ready fibre at or after `from`, around the ring; MAX_THREADS if none. */
unsigned ready_from(unsigned from)
{
    for (unsigned i = 0; i <= WORDS; ++i) {
        const unsigned at = (from / 64 + i) % WORDS;
        uint64_t word = e.ready[at];

        if (i == 0) {
            word &= ~0ull << from % 64;
        }
        if (word != 0) {
            return at * 64 + (unsigned)__builtin_ctzll(word);
        }
    }
    return MAX_THREADS;
}

/* First ready fibre at or before `from`, around the ring downwards. */
unsigned ready_before(unsigned from)
{
    for (unsigned i = 0; i <= WORDS; ++i) {
        const unsigned at = (from / 64 + WORDS - i) % WORDS;
        uint64_t word = e.ready[at];

        if (i == 0) {
            word &= ~0ull >> (63 - from % 64);
        }
        if (word != 0) {
            return at * 64 + 63 - (unsigned)__builtin_clzll(word);
        }
    }
    return MAX_THREADS;
}

/* In random order some warp, or none, stays behind as far as barriers let it, as a warp may that a
 * GPU's scheduler neglects: what reads or writes too early without a barrier then shows. */
void choose_laggard(void)
{
    const unsigned warps = (e.threads + WARP - 1) / WARP;

    e.laggard = fake_get_order() == FAKE_RANDOM ? fake_random(warps + 1) : warps;
}

unsigned pick_random(void)
{
    const unsigned from = fake_random(e.threads);

    if (e.laggard * WARP >= e.threads) {
        return ready_from(from);
    }
    uint64_t *const word = &e.ready[e.laggard * WARP / 64], all = *word;
    *word &= ~(uint64_t{~0u} << e.laggard * WARP % 64);
    const unsigned next = ready_from(from);
    *word = all;
    return next == MAX_THREADS ? ready_from(from) : next;
}

unsigned pick(void)
{
    switch (fake_get_order()) {
    case FAKE_REVERSE:
        return ready_before((e.current + MAX_THREADS - 1) % MAX_THREADS);
    case FAKE_RANDOM:
        return pick_random();
    default:
        return ready_from((e.current + 1) % MAX_THREADS);
    }
}

/* End the launch: nothing of this block runs again. */
__attribute__((format(printf, 1, 2), noreturn)) void fault(const char *text, ...)
{
    void *abandoned;
    va_list list;
    const int used =
        std::snprintf(e.fault, sizeof e.fault, "block %u,%u,%u thread %u: ", cuemu_block.x,
                      cuemu_block.y, cuemu_block.z, e.current);

    va_start(list, text);
    (void)std::vsnprintf(e.fault + used, sizeof e.fault - (size_t)used, text, list);
    va_end(list);
    cuemu_swap(&abandoned, e.main_stack_pointer);
    __builtin_unreachable();
}

[[noreturn]] void report_deadlock(void)
{
    for (unsigned t = 0; t < e.threads; ++t) {
        if (e.warps[t / WARP].arrived >> t % WARP & 1) {
            const lane_call &call = e.fibers[t].call;
            fault("deadlock: thread %u waits at %s:%d for the lanes %08x; %u of %u threads wait at "
                  "a barrier",
                  t, call.file, call.line, call.mask, e.at_barrier, e.live);
        }
    }
    fault("deadlock: %u of %u threads wait at %s:%d", e.at_barrier, e.live, e.barrier_file,
          e.barrier_line);
}

void run_next(void **save)
{
    const unsigned next = e.live != 0 ? pick() : MAX_THREADS;

    if (next == MAX_THREADS) {
        if (e.live != 0) {
            report_deadlock();
        }
        cuemu_swap(save, e.main_stack_pointer);
        return;
    }
    cuemu_thread = e.fibers[next].index;
    if (next != e.current) {
        e.current = next;
        cuemu_swap(save, e.fibers[next].stack_pointer);
    }
}

void release_barrier(void)
{
    if (e.at_barrier == 0 || e.at_barrier != e.live) {
        return;
    }
    e.at_barrier = 0;
    choose_laggard();
    for (unsigned t = 0; t < e.threads; ++t) {
        set_ready(t);
    }
}

uint64_t answer(unsigned base, unsigned members, const lane_call &mine)
{
    uint64_t result = 0;

    if (mine.op == CUEMU_SHUFFLE) { /* a lane that takes no part has nothing to say */
        return members >> mine.source & 1 ? e.fibers[base + mine.source].call.value : ~0ull;
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        const uint64_t value = e.fibers[base + lane].call.value;

        if ((members >> lane & 1) && (mine.op == CUEMU_BALLOT ? value != 0 : value == mine.value)) {
            result |= 1ull << lane;
        }
    }
    return result;
}

/* Let the lanes of mask go on if all of them that still run have come, to the same call. */
void release_lanes(unsigned base, unsigned mask)
{
    warp &w = e.warps[base / WARP];
    const unsigned members = mask & w.alive;
    const lane_call *first = nullptr;

    if (members == 0 || (w.arrived & members) != members) {
        return;
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        const lane_call &call = e.fibers[base + lane].call;

        if (!(members >> lane & 1)) {
            continue;
        }
        first = first == nullptr ? &call : first;
        if (call.mask != mask || call.op != first->op || call.line != first->line) {
            fault("lanes of one warp meet in different calls: %s:%d mask %08x, %s:%d mask %08x",
                  first->file, first->line, first->mask, call.file, call.line, call.mask);
        }
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (members >> lane & 1) {
            lane_call &call = e.fibers[base + lane].call;

            call.result = answer(base, members, call);
            set_ready(base + lane);
        }
    }
    w.arrived &= ~members;
}

[[noreturn]] void fiber_main(void)
{
    e.now->call(e.now->args);

    const unsigned me = e.current, base = me & ~(WARP - 1);
    warp &w = e.warps[base / WARP];

    if (e.at_barrier != 0) {
        fault("leaves the kernel while %u threads wait at %s:%d", e.at_barrier, e.barrier_file,
              e.barrier_line);
    }
    --e.live;
    set_waiting(me);
    w.alive &= ~(1u << (me - base));
    if (w.arrived != 0) { /* those may have been waiting for this lane */
        release_lanes(base, e.fibers[base + (unsigned)__builtin_ctz(w.arrived)].call.mask);
    }
    run_next(&e.fibers[me].stack_pointer);
    __builtin_unreachable();
}

void *map(size_t bytes)
{
    void *const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (at == MAP_FAILED) {
        std::perror("cuemu: mmap");
        _exit(1);
    }
    return at;
}

void make_memory(void)
{
    if (e.stacks != nullptr) {
        return;
    }
    e.stacks = (char *)map((size_t)MAX_THREADS * STACK_BYTES);
    for (unsigned t = 0; t < MAX_THREADS; ++t) { /* a stack that overflows faults */
        (void)mprotect(e.stacks + (size_t)t * STACK_BYTES, PAGE, PROT_NONE);
    }
    e.shared = (unsigned char *)map(2 * SHARED_MAX);
}

void fill_piece(const shared_piece &piece)
{
    uint32_t *const fence = (uint32_t *)(void *)(e.shared + piece.offset + piece.bytes);

    std::memset(e.shared + piece.offset, 0xff, piece.bytes);
    for (unsigned i = 0; i < FENCE / 4; ++i) {
        std::memcpy(fence + i, &fence_pattern, 4);
    }
}

void check_fences(void)
{
    for (unsigned p = 0; p < e.piece_count; ++p) {
        const shared_piece &piece = e.pieces[p];

        for (unsigned i = 0; i < FENCE; i += 4) {
            uint32_t found;
            std::memcpy(&found, e.shared + piece.offset + piece.bytes + i, 4);
            if (found != fence_pattern) {
                (void)std::snprintf(e.fault, sizeof e.fault,
                                    "block %u,%u,%u wrote %u bytes past %zu bytes of shared memory",
                                    cuemu_block.x, cuemu_block.y, cuemu_block.z, i, piece.bytes);
                return;
            }
        }
    }
}

void *shared_of(const void *key, size_t bytes)
{
    for (unsigned p = 0; p < e.piece_count; ++p) {
        if (e.pieces[p].key == key) {
            return e.shared + e.pieces[p].offset;
        }
    }
    shared_piece piece = {key, e.shared_used, bytes};
    if (e.piece_count == SHARED_ENTRIES || piece.offset + bytes + FENCE > 2 * SHARED_MAX) {
        fault("more shared memory than a block has");
    }
    e.shared_used = (piece.offset + bytes + FENCE + 127) / 128 * 128;
    e.pieces[e.piece_count++] = piece;
    fill_piece(piece);
    return e.shared + piece.offset;
}

void check_shared_size(void)
{
    size_t fixed = 0;

    for (unsigned p = 0; p < e.piece_count; ++p) {
        fixed += e.pieces[p].key != nullptr ? e.pieces[p].bytes : 0;
    }
    if (fixed > STATIC_SHARED_MAX || fixed + e.now->shared_bytes > SHARED_MAX) {
        fault("shared memory of %zu fixed and %zu dynamic bytes, at most %u and %u in all", fixed,
              e.now->shared_bytes, STATIC_SHARED_MAX, SHARED_MAX);
    }
}

void start_block(void)
{
    const dim3 b = e.now->block;

    e.threads = e.live = b.x * b.y * b.z;
    e.at_barrier = 0;
    choose_laggard();
    std::memset(e.ready, 0, sizeof e.ready);
    for (unsigned p = 0; p < e.piece_count; ++p) {
        fill_piece(e.pieces[p]);
    }
    for (unsigned w = 0; w * WARP < e.threads; ++w) {
        const unsigned lanes = e.threads - w * WARP;
        e.warps[w] = warp{lanes >= WARP ? ~0u : (1u << lanes) - 1, 0};
    }
    for (unsigned t = 0; t < e.threads; ++t) {
        /* the first switch pops six registers, then "returns" into fiber_main, whose own return
         * address is the zero above; the stack is aligned as after a call */
        void **top = (void **)(void *)(e.stacks + (size_t)(t + 1) * STACK_BYTES) - 2;
        void (*entry)(void) = fiber_main;

        std::memcpy(top, &entry, sizeof entry);
        top[1] = nullptr;
        e.fibers[t].stack_pointer = top - 6;
        e.fibers[t].index = uint3{t % b.x, t / b.x % b.y, t / (b.x * b.y)};
        set_ready(t);
    }
    e.current = fake_get_order() == FAKE_REVERSE ? 0 : e.threads - 1; /* pick() goes on from here */
}

uint64_t gcd(uint64_t a, uint64_t b)
{
    return b == 0 ? a : gcd(b, a % b);
}

cudaError_t run_launch(const void *arg)
{
    const launch *const l = (const launch *)arg;
    const uint64_t blocks = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
    uint64_t step = 1, at = 0;

    make_memory();
    if (e.is_running) {
        ASAN_UNPOISON_MEMORY_REGION(e.stacks, (size_t)MAX_THREADS * STACK_BYTES);
    }
    e.is_running = true;
    e.now = l;
    e.fault[0] = '\0';
    e.piece_count = 0;
    e.shared_used = 0;
    cuemu_grid_dim = l->grid;
    cuemu_block_dim = l->block;
    if (fake_get_order() == FAKE_REVERSE) {
        step = blocks - 1;
        at = blocks - 1;
    } else if (fake_get_order() ==
               FAKE_RANDOM) { /* a step without a common factor visits each once */
        step = 1 + fake_random((uint32_t)(blocks < UINT32_MAX ? blocks : UINT32_MAX));
        while (gcd(step, blocks) != 1) {
            ++step;
        }
        at = fake_random((uint32_t)(blocks < UINT32_MAX ? blocks : UINT32_MAX));
    }
    for (uint64_t i = 0; i < blocks && e.fault[0] == '\0'; ++i) {
        cuemu_block = uint3{(unsigned)(at % l->grid.x), (unsigned)(at / l->grid.x % l->grid.y),
                            (unsigned)(at / ((uint64_t)l->grid.x * l->grid.y))};
        start_block();
        e.current = pick();
        cuemu_thread = e.fibers[e.current].index;
        cuemu_swap(&e.main_stack_pointer, e.fibers[e.current].stack_pointer);
        if (e.fault[0] == '\0') {
            check_fences();
        }
        at = (at + step) % blocks;
    }
    if (e.fault[0] != '\0') {
        (void)std::fprintf(stderr, "emulated kernel: %s\n", e.fault);
        return cudaErrorLaunchFailure;
    }
    e.is_running = false;
    return cudaSuccess;
}

/* A kernel that is given the host's own memory would fault on a GPU: find such arguments. A word
 * may also be a bool, an int or a float with padding, where anything may be left: what begins like
 * one of the first two is passed over, and so is what lies below where Linux puts a process. */
bool has_host_pointer(const unsigned char *args, size_t bytes)
{
    for (size_t i = sizeof(void *); i + sizeof(void *) <= bytes; i += sizeof(void *)) {
        uintptr_t word;
        unsigned char present;

        std::memcpy(&word, args + i, sizeof word); /* the word before is the kernel's own address */
        if (word >> 40 == 0 || word >> 47 != 0 || (word & 0xff) <= 1 ||
            (word & 0xffffffff) < 1u << 16 || fake_is_arena((void *)word) ||
            fake_is_pinned((void *)word, 1)) {
            continue;
        }
        if (mincore((void *)(word & ~(uintptr_t)(PAGE - 1)), PAGE, &present) == 0) {
            (void)std::fprintf(stderr,
                               "emulated launch: argument at byte %zu is host memory, %#zx\n",
                               i - sizeof(void *), (size_t)word);
            return true;
        }
    }
    return false;
}
} // namespace

void cuemu_barrier(const char *file, int line)
{
    const unsigned me = e.current;

    if (e.live != e.threads) {
        fault("%u threads have left the kernel before the barrier at %s:%d", e.threads - e.live,
              file, line);
    }
    if (e.at_barrier == 0) {
        e.barrier_file = file;
        e.barrier_line = line;
    } else if (line != e.barrier_line || std::strcmp(file, e.barrier_file) != 0) {
        fault("is at the barrier %s:%d, but %u threads wait at %s:%d", file, line, e.at_barrier,
              e.barrier_file, e.barrier_line);
    }
    ++e.at_barrier;
    set_waiting(me);
    release_barrier();
    run_next(&e.fibers[me].stack_pointer);
}

uint64_t cuemu_warp(cuemu_op op, unsigned mask, uint64_t value, unsigned source, const char *file,
                    int line)
{
    const unsigned me = e.current, base = me & ~(WARP - 1), bit = 1u << (me - base);

    if (!(mask & bit)) {
        fault("lane %u is not in its own mask %08x at %s:%d", me - base, mask, file, line);
    }
    e.fibers[me].call = lane_call{op, mask, source, value, 0, file, line};
    e.warps[base / WARP].arrived |= bit;
    set_waiting(me);
    release_lanes(base, mask);
    run_next(&e.fibers[me].stack_pointer);
    return e.fibers[me].call.result;
}

void cuemu_spin(void)
{
    if (fake_random(64) == 0) { /* it may be the laggard that is waited for */
        choose_laggard();
    }
    run_next(&e.fibers[e.current].stack_pointer);
}

void cuemu_trap(const char *file, int line)
{
    fault("trap at %s:%d", file, line);
}

unsigned cuemu_lane(void)
{
    return e.current % WARP;
}

void *cuemu_shared(const void *key, size_t bytes)
{
    const unsigned before = e.piece_count;
    void *const at = shared_of(key, bytes);

    if (e.piece_count != before) {
        check_shared_size();
    }
    return at;
}

void *cuemu_dynamic_shared(void)
{
    return shared_of(nullptr, e.now->shared_bytes);
}

cudaError_t cuemu_launch(void (*call)(const void *), const void *args, size_t bytes, dim3 grid,
                         dim3 block, size_t shared_bytes, cudaStream_t stream)
{
    static thread_local launch l; /* queued by copy */
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;

    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX ||
        grid.z > UINT16_MAX || threads == 0 || threads > MAX_THREADS || block.z > 64) {
        return fake_error(cudaErrorInvalidConfiguration);
    }
    if (bytes > ARGS_MAX || shared_bytes > SHARED_MAX) {
        return fake_error(cudaErrorInvalidValue);
    }
    if (has_host_pointer((const unsigned char *)args, bytes)) {
        return fake_error(cudaErrorIllegalAddress);
    }
    l.call = call;
    l.grid = grid;
    l.block = block;
    l.shared_bytes = shared_bytes;
    std::memcpy(l.args, args, bytes);
    return fake_enqueue(stream, run_launch, &l, offsetof(launch, args) + bytes);
}
