// The System recurrence as plain loops, for PRECISION 32 (float) or 64 (double). The headers have the mathematics.
//
// Threads: the pool that the process already has, torch's own OpenMP (its GOMP_parallel is handed over by the loader).
// Without one, or in a child of fork, where that pool is gone, threads live for one call. Nothing is kept between
// calls but each thread's scratch memory, so any number of threads may call at once.

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

typedef void (*parallel_region)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

static parallel_region pool;
static pid_t owner;

void stateform_threads(parallel_region region) {
    pool = region;
    owner = getpid();
}

typedef struct {
    void (*item)(const void *job, int64_t index, void *scratch);
    const void *job;
    int64_t items, next;
    size_t scratch;
    int failed;
} work;

static pthread_key_t kept;  // each thread's scratch memory, its size in front; freed when the thread ends
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&kept, free); }

static char *scratch_of(size_t size) {
    enum { FRONT = 64 };
    pthread_once(&once, make_key);
    char *at = pthread_getspecific(kept);
    if (!at || *(size_t *)at < size) {
        free(at);
        at = aligned_alloc(64, (size + 63) / 64 * 64 + FRONT);
        pthread_setspecific(kept, at);
        if (!at) return 0;
        *(size_t *)at = size;
    }
    return at + FRONT;
}

// Numbers below the least normal one count as 0 in the loops, as in vexp: with them a product takes a hundred times as long.
#if defined(__SSE__)
static unsigned flush(void) { unsigned was = __builtin_ia32_stmxcsr(); __builtin_ia32_ldmxcsr(was | 0x8040); return was; }
static void unflush(unsigned was) { __builtin_ia32_ldmxcsr(was); }
#elif defined(__aarch64__)
static uint64_t flush(void) { uint64_t was; __asm__ volatile("mrs %0, fpcr" : "=r"(was)); __asm__ volatile("msr fpcr, %0" ::"r"(was | 1 << 24)); return was; }
static void unflush(uint64_t was) { __asm__ volatile("msr fpcr, %0" ::"r"(was)); }
#else
static int flush(void) { return 0; }
static void unflush(int was) { (void)was; }
#endif

static void *take_items(void *data) {
    work *w = data;
    char *scratch = scratch_of(w->scratch);
    if (!scratch) {
        __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    const __typeof__(flush()) was = flush();
    for (;;) {
        int64_t i = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
        if (i >= w->items) return unflush(was), NULL;
        w->item(w->job, i, scratch);
    }
}

static void in_pool(void *data) { take_items(data); }

static int share_out(void (*item)(const void *, int64_t, void *), const void *job, int64_t items, size_t scratch,
                     int64_t threads) {
    work w = {item, job, items, 0, scratch, 0};
    if (threads > items) threads = items;
    if (threads > 64) threads = 64;
    if (threads > 1 && pool && getpid() == owner) {
        pool(in_pool, &w, (unsigned)threads, 0);
        return w.failed;
    }
    pthread_t others[64];
    int64_t started = 0;
    while (started < threads - 1 && !pthread_create(&others[started], 0, take_items, &w)) started++;
    take_items(&w);
    for (int64_t i = 0; i < started; i++) pthread_join(others[i], 0);
    return w.failed;
}

// Where the elements of a tensor [batch, time, G, R, last] lie; a stride of 0 repeats. piece: to the next piece's.
typedef struct { void *at; int64_t b, t, g, r, n, piece; } tensor;

enum { TILE = 32 };  // steps between the states that are kept for the gradient

typedef struct {
    int64_t B, T, G, R, n, p, threads, exclusive;
    int64_t wide, pieces;                   // one decay a key; pieces of the columns, an item each
    int64_t spans, shared_q, shared_k;      // backwards: of the R heads; whether they share q and k, and so dq and dk
    int64_t same, chunked;                  // f is k, whose gradient df is then part of; whether tiles are computed at once
    tensor q, k, v, log, f, w, S, y, end, kept;        // kept: [B,G,R,tiles,n,p], or see chunk
    tensor gy, gend, dq, dk, dv, dlog, df, dw, dS;     // dq, dk, dlog, df, dw: one for each piece
} matrix_job;

typedef struct {
    int64_t B, T, L, n, threads, exclusive;
    tensor q, k, v, log, rate, S, y, end, kept;  // v, log, y [B,T,L]; q, k [B,T,n]; rate [n,L]; S, end [B,L,n]
    tensor gy, gend, dq, dk, dv, dlog, drate, dS;   // dq, dk [chunks,B,T,n]; drate [B,n,L]; kept [B,tiles,n,L]
    int64_t chunk;                               // lanes that one item takes
} channel_job;

typedef struct {
    int64_t B, T, L, taps, activate, threads, chunk;         // chunk: channels that one item takes backwards
    tensor x, window, weight, bias, y, next;                 // x, y [B,T,L]; window, next [B,taps-1,L]; weight [taps,L]
    tensor gy, dx, dwindow, dweight, dbias;                  // dweight [B,taps,L], dbias [B,L]
} conv_job;

typedef struct {
    int64_t B, T, L, n, threads, exclusive;
    tensor c, v, S, y, end, kept;      // c [6,n,L]; v, y [B,T,L]; S, end [B,2,n,L]; kept [B,tiles,2,n,L]
    tensor gy, gend, dv, dc, dS;       // dc [B,6,n,L]
} modes_job;

#if PRECISION == 64
#define REAL double
#define LANES 8
#define INT int64_t
#else
#define REAL float
#define LANES 16
#define INT int32_t
#endif
#include "vectors.h"
#include "matrix.h"
#include "channel.h"
#include "conv.h"
#include "step.h"
#include "norm.h"
#include "modes.h"
