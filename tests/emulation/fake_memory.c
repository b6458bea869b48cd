/* Memory of the emulated GPU. Blocks come from one reserved range of addresses, each with a page
 * that nobody may touch on either side, and no address is used twice: an access past a block, or
 * after it was freed, is a fault. The host may not touch any of it: pages are open only while work
 * runs. */
#include "tests/emulation/fake_impl.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    PAGE = 4096,
    ALIGN = 256,          /* what cudaMalloc() promises */
    UNDEFINED = 0xff,     /* fresh memory is NaN */
    FILLED_MAX = 1 << 20, /* but not that of larger blocks: pages never touched cost nothing */
    AROUND = 0xa5         /* the rest of a block's pages */
};
static const size_t arena_bytes = (size_t)1 << 40;   /* addresses only */
static const size_t device_bytes = (size_t)16 << 30; /* what the emulated GPU has */

typedef struct block {
    unsigned char *pages, *at;
    size_t page_bytes, bytes;
    bool is_live;
} block;

static struct {
    unsigned char *arena, *next;
    block *blocks; /* by address */
    size_t count, capacity, used_bytes;
    block *pinned;
    size_t pinned_count;
    int open;
} m;

/* ---- faults while work runs ----------------------------------------------------------------- */

static sigjmp_buf on_fault;
static volatile sig_atomic_t is_guarded;
static volatile sig_atomic_t fault_signal;
static void *volatile fault_address;
static char signal_stack[1 << 16];

static void catch_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (!is_guarded) { /* not ours: let it happen again, with the default action */
        (void)signal(number, SIG_DFL);
        return;
    }
    fault_signal = number;
    fault_address = info->si_addr;
    siglongjmp(on_fault, 1);
}

static const block *block_near(const unsigned char *at)
{
    const block *found = NULL;

    for (size_t i = 0; i < m.count && m.blocks[i].pages - PAGE <= at; ++i) {
        found = &m.blocks[i];
    }
    return found;
}

static cudaError_t describe_fault(char *text, size_t size)
{
    const unsigned char *const at = fault_address;
    const block *const near = fake_is_arena(at) ? block_near(at) : NULL;

    if (fault_signal == SIGILL) { /* kernels are compiled to trap there */
        (void)snprintf(text, size, "misaligned access of a kernel");
        return cudaErrorMisalignedAddress;
    }
    if (near == NULL) {
        (void)snprintf(text, size, "access to %p, which is no device memory", (const void *)at);
    } else {
        (void)snprintf(text, size, "access to %p, %td bytes from the start of a %s of %zu bytes",
                       (const void *)at, at - near->at, near->is_live ? "block" : "freed block",
                       near->bytes);
    }
    return cudaErrorIllegalAddress;
}

cudaError_t fake_guarded(cudaError_t (*run)(const void *), const void *arg)
{
    enum { SIGNALS = 3 };
    static const int numbers[SIGNALS] = {SIGSEGV, SIGBUS, SIGILL};
    struct sigaction action = {.sa_sigaction = catch_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction before[SIGNALS];
    const stack_t mine = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    stack_t theirs;
    volatile cudaError_t code = cudaSuccess;
    char text[160];

    (void)sigaltstack(&mine, &theirs);
    for (int i = 0; i < SIGNALS; ++i) {
        (void)sigaction(numbers[i], &action, &before[i]);
    }
    if (sigsetjmp(on_fault, 1) == 0) {
        is_guarded = 1;
        code = run(arg);
        is_guarded = 0;
        if (code != cudaSuccess && code != cudaErrorNotReady) {
            (void)fake_set_fault(code, NULL); /* run has said why */
        }
    } else {
        is_guarded = 0;
        code = describe_fault(text, sizeof text);
        (void)fake_set_fault(code, text);
    }
    for (int i = 0; i < SIGNALS; ++i) {
        (void)sigaction(numbers[i], &before[i], NULL);
    }
    (void)sigaltstack(&theirs, NULL);
    return code;
}

/* ---- the fence ------------------------------------------------------------------------------ */

static void set_access(int protection)
{
    for (size_t i = 0; i < m.count; ++i) {
        if (m.blocks[i].is_live) {
            (void)mprotect(m.blocks[i].pages, m.blocks[i].page_bytes, protection);
        }
    }
}

static bool is_filled(const unsigned char *from, const unsigned char *to)
{
    for (; from < to; ++from) {
        if (*from != AROUND) {
            return false;
        }
    }
    return true;
}

/* The parts of a block's pages that are not the block cannot be fenced: look at them. */
static void check_around(const block *b)
{
    char text[120];
    const bool is_whole_before = is_filled(b->pages, b->at);

    if (is_whole_before && is_filled(b->at + b->bytes, b->pages + b->page_bytes)) {
        return;
    }
    (void)snprintf(text, sizeof text, "something was written %s the block of %zu bytes at %p",
                   is_whole_before ? "past" : "before", b->bytes, (void *)b->at);
    (void)fake_set_fault(cudaErrorIllegalAddress, text);
}

void fake_memory_open(void)
{
    if (m.open++ == 0) {
        set_access(PROT_READ | PROT_WRITE);
    }
}

void fake_memory_close(void)
{
    if (--m.open != 0) {
        return;
    }
    for (size_t i = 0; i < m.count && fake_fault() == cudaSuccess; ++i) {
        if (m.blocks[i].is_live) {
            check_around(&m.blocks[i]);
        }
    }
    set_access(PROT_NONE);
}

/* ---- blocks --------------------------------------------------------------------------------- */

static block *find_block(const void *at)
{
    size_t from = 0, to = m.count;

    while (from < to) { /* the last block that starts at or before `at` */
        const size_t middle = (from + to) / 2;
        if (m.blocks[middle].at <= (const unsigned char *)at) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    if (from == 0 || !m.blocks[from - 1].is_live) {
        return NULL;
    }
    block *const b = &m.blocks[from - 1];
    return (const unsigned char *)at < b->at + b->bytes ? b : NULL;
}

bool fake_is_device(const void *at, size_t bytes)
{
    fake_lock();
    const block *const b = find_block(at);
    const bool is_inside =
        b != NULL && bytes <= (size_t)(b->at + b->bytes - (const unsigned char *)at);
    fake_unlock();
    return is_inside;
}

bool fake_is_arena(const void *at)
{
    return m.arena != NULL && (const unsigned char *)at >= m.arena &&
           (const unsigned char *)at < m.arena + arena_bytes;
}

static cudaError_t reserve(void)
{
    if (m.count == m.capacity) {
        const size_t capacity = 2 * m.capacity + 64;
        block *const larger = realloc(m.blocks, capacity * sizeof *larger);

        if (larger == NULL) {
            return cudaErrorMemoryAllocation;
        }
        m.blocks = larger;
        m.capacity = capacity;
    }
    if (m.arena == NULL) {
        void *const at =
            mmap(NULL, arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (at == MAP_FAILED) {
            return cudaErrorMemoryAllocation;
        }
        (void)madvise(at, arena_bytes, MADV_HUGEPAGE); /* large blocks open and close faster */
        m.arena = at;
        m.next = m.arena;
    }
    return cudaSuccess;
}

static cudaError_t take_block(void **at_out, size_t bytes)
{
    const size_t taken = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    const size_t page_bytes = (bytes + PAGE - 1) / PAGE * PAGE;

    if (bytes > device_bytes - m.used_bytes || reserve() != cudaSuccess ||
        page_bytes + 2 * PAGE > (size_t)(m.arena + arena_bytes - m.next)) {
        return cudaErrorMemoryAllocation;
    }
    block b = {.pages = m.next + PAGE, .page_bytes = page_bytes, .bytes = bytes, .is_live = true};
    b.at = b.pages + page_bytes - taken; /* as near to the page behind as its alignment allows */
    if (mprotect(b.pages, page_bytes, PROT_READ | PROT_WRITE) != 0) {
        return cudaErrorMemoryAllocation;
    }
    memset(b.pages, AROUND, (size_t)(b.at - b.pages));
    memset(b.at + bytes, AROUND, (size_t)(b.pages + page_bytes - (b.at + bytes)));
    if (bytes <= FILLED_MAX) {
        memset(b.at, UNDEFINED, bytes);
    }
    if (m.open == 0) {
        (void)mprotect(b.pages, page_bytes, PROT_NONE);
    }
    m.next += page_bytes + PAGE;
    m.used_bytes += bytes;
    m.blocks[m.count++] = b;
    *at_out = b.at;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **at_out, size_t bytes)
{
    cudaError_t code = fake_fault();

    if (code != cudaSuccess) {
        return fake_error(code);
    }
    if (at_out == NULL) {
        return fake_error(cudaErrorInvalidValue);
    }
    *at_out = NULL;
    if (bytes == 0) {
        return cudaSuccess;
    }
    fake_lock();
    code = take_block(at_out, bytes);
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaFree(void *at)
{
    cudaError_t code = cudaErrorInvalidValue;

    if (at == NULL) {
        return cudaSuccess;
    }
    fake_lock();
    (void)fake_drain_all(); /* as the real one does */
    block *const b = find_block(at);
    if (b != NULL && b->at == at) {
        b->is_live = false;
        m.used_bytes -= b->bytes;
        (void)mprotect(b->pages, b->page_bytes, PROT_NONE);
        (void)madvise(b->pages, b->page_bytes, MADV_DONTNEED);
        code = fake_fault();
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out)
{
    *free_out = device_bytes - m.used_bytes;
    *total_out = device_bytes;
    return fake_error(fake_fault());
}

/* ---- pinned host memory --------------------------------------------------------------------- */

bool fake_is_pinned(const void *at, size_t bytes)
{
    const unsigned char *const from = at;
    bool is_inside = false;

    fake_lock();
    for (size_t i = 0; i < m.pinned_count && !is_inside; ++i) {
        const block *const b = &m.pinned[i];
        is_inside =
            from >= b->at && from < b->at + b->bytes && bytes <= (size_t)(b->at + b->bytes - from);
    }
    fake_unlock();
    return is_inside;
}

static cudaError_t take_pinned(void **at_out, size_t bytes)
{
    block *const larger = realloc(m.pinned, (m.pinned_count + 1) * sizeof *larger);

    if (larger == NULL) {
        return cudaErrorMemoryAllocation;
    }
    m.pinned = larger;
    void *const at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        return cudaErrorMemoryAllocation;
    }
    memset(at, UNDEFINED, bytes);
    m.pinned[m.pinned_count++] = (block){.at = at, .bytes = bytes};
    *at_out = at;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **at_out, size_t bytes, unsigned flags)
{
    cudaError_t code = fake_fault();

    if (code == cudaSuccess && (at_out == NULL || bytes == 0 || flags > 7)) {
        code = cudaErrorInvalidValue;
    }
    if (code == cudaSuccess) {
        fake_lock();
        code = take_pinned(at_out, bytes);
        fake_unlock();
    }
    return fake_error(code);
}

cudaError_t cudaMallocHost(void **at_out, size_t bytes)
{
    return cudaHostAlloc(at_out, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *at)
{
    cudaError_t code = at == NULL ? cudaSuccess : cudaErrorInvalidValue;

    fake_lock();
    (void)fake_drain_all();
    for (size_t i = 0; i < m.pinned_count && at != NULL; ++i) {
        if (m.pinned[i].at == at) {
            (void)munmap(at, m.pinned[i].bytes);
            m.pinned[i] = m.pinned[--m.pinned_count];
            code = fake_fault();
            break;
        }
    }
    fake_unlock();
    return fake_error(code);
}
