/* Threads that help with the send phase of a flush: the calling thread shares its jobs with them.
 *
 * One pool serves the process. Its threads run plain C without Python: they touch the jobs of a
 * share, and kernel calls. They block all signals, sleep on a futex between two shares, and end
 * with the last `wsc_pool_close`.
 *
 * Rules
 * 1.  The jobs are done in chunks, which are claimed in their order. A chunk that is claimed is done
 *     whole, and none is claimed past the deadline but the caller's first. So the jobs that were not
 *     tried are the last ones, as without threads.
 * 2.  A thread reads the fields of a share between entering and leaving the gate alone, and the
 *     caller writes them while the gate is closed and nobody is inside.
 * 3.  The caller waits for threads that are inside, and never for one that has not woken up.
 * 4.  One share at a time: the loop of another thread that comes meanwhile does its jobs alone.
 * 5.  The child of a fork has no such threads, and begins with an empty pool. */
#ifndef WSC_SEND_POOL_H
#define WSC_SEND_POOL_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "net.h"

#ifdef __linux__
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Does the jobs from `first` to before `last`. */
typedef void (*wsc_part)(void *jobs, ssize_t first, ssize_t last);

#define WSC_CHUNK 16
#define WSC_MOST_THREADS 16
/* Looks at the gate before the caller gives its core to a thread that is inside. */
#define WSC_SPINS 2000
/* Of `gate`: threads may enter; the other bits count those inside. */
#define WSC_OPEN 0x80000000u

typedef struct {
    _Atomic uint32_t gate;
    _Atomic uint32_t turn; /* the futex: rises with each share, and with the end */
    _Atomic uint32_t asleep;
    _Atomic int ending;
    atomic_flag shared; /* a share goes on */
    /* Of the share (rule 2); `next` is the first job that nobody has claimed. */
    _Atomic ssize_t next;
    wsc_part part;
    void *jobs;
    ssize_t count;
    double deadline;
    /* Under the mutex. `threads` is read without it: it says how many may be woken. */
    pthread_mutex_t mutex;
    pthread_t ids[WSC_MOST_THREADS];
    _Atomic int threads;
    int users;
    int watched; /* pthread_atfork was called */
} wsc_send_pool;

static wsc_send_pool wsc_pool = {.shared = ATOMIC_FLAG_INIT, .mutex = PTHREAD_MUTEX_INITIALIZER};

#ifdef __linux__

static inline void wsc_futex(int operation, uint32_t value) {
    /* Waiting fails with EAGAIN or EINTR, and waking with nothing: both loop or go on. */
    (void)syscall(SYS_futex, &wsc_pool.turn, operation, value, NULL, NULL, 0);
}

/* Claims chunks and does them, until none is left or the deadline has passed. */
static inline void wsc_take_chunks(int sure_of_one) {
    for (;;) {
        ssize_t first, last;
        if (!sure_of_one && wsc_now() >= wsc_pool.deadline) return;
        sure_of_one = 0;
        first = atomic_fetch_add_explicit(&wsc_pool.next, WSC_CHUNK, memory_order_relaxed);
        if (first >= wsc_pool.count) return;
        last = first + WSC_CHUNK;
        wsc_pool.part(wsc_pool.jobs, first, last < wsc_pool.count ? last : wsc_pool.count);
    }
}

/* Whether a thread is inside the gate now, which was open. */
static inline int wsc_enter(void) {
    uint32_t gate = atomic_load_explicit(&wsc_pool.gate, memory_order_relaxed);
    while (gate & WSC_OPEN) {
        if (atomic_compare_exchange_weak_explicit(&wsc_pool.gate, &gate, gate + 1,
                                                  memory_order_acquire, memory_order_relaxed))
            return 1;
    }
    return 0;
}

static void *wsc_help(void *unused) {
    uint32_t seen = 0;
    (void)unused;
    (void)prctl(PR_SET_NAME, "wsc-send");
    for (;;) {
        uint32_t turn;
        while ((turn = atomic_load(&wsc_pool.turn)) == seen) {
            atomic_fetch_add(&wsc_pool.asleep, 1);
            wsc_futex(FUTEX_WAIT_PRIVATE, seen);
            atomic_fetch_sub(&wsc_pool.asleep, 1);
        }
        seen = turn;
        if (atomic_load(&wsc_pool.ending)) return NULL;
        if (wsc_enter()) {
            wsc_take_chunks(0);
            atomic_fetch_sub_explicit(&wsc_pool.gate, 1, memory_order_release);
        }
    }
}

/* The child has the calling thread alone: what the others held or did is gone. */
static void wsc_pool_forked(void) {
    pthread_mutex_init(&wsc_pool.mutex, NULL);
    atomic_store(&wsc_pool.gate, 0);
    atomic_store(&wsc_pool.asleep, 0);
    atomic_store(&wsc_pool.ending, 0);
    atomic_store(&wsc_pool.threads, 0);
    atomic_flag_clear(&wsc_pool.shared);
    wsc_pool.users = 0;
}

/* Says that somebody shares with so many threads; returns how many there are, 0 with an error of the
 * system too. To be closed once for each time that it was opened. */
static inline int wsc_pool_open(int threads) {
    sigset_t all, before;
    int made;
    pthread_mutex_lock(&wsc_pool.mutex);
    if (!wsc_pool.watched) wsc_pool.watched = pthread_atfork(NULL, NULL, wsc_pool_forked) == 0;
    wsc_pool.users += 1;
    made = atomic_load(&wsc_pool.threads);
    if (threads > WSC_MOST_THREADS) threads = WSC_MOST_THREADS;
    /* Without the hook a child would wait for threads that it does not have. */
    if (wsc_pool.watched && made < threads) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (made < threads && pthread_create(&wsc_pool.ids[made], NULL, wsc_help, NULL) == 0)
            made += 1;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        atomic_store(&wsc_pool.threads, made);
    }
    pthread_mutex_unlock(&wsc_pool.mutex);
    return made;
}

/* Undoes one `wsc_pool_open`; the last one ends the threads, and waits for that. */
static inline void wsc_pool_close(void) {
    int i, threads;
    pthread_mutex_lock(&wsc_pool.mutex);
    if (wsc_pool.users > 0 && --wsc_pool.users == 0) {
        threads = atomic_load(&wsc_pool.threads);
        atomic_store(&wsc_pool.threads, 0);
        atomic_store(&wsc_pool.ending, 1);
        atomic_fetch_add(&wsc_pool.turn, 1);
        wsc_futex(FUTEX_WAKE_PRIVATE, INT32_MAX);
        for (i = 0; i < threads; i++) pthread_join(wsc_pool.ids[i], NULL);
        atomic_store(&wsc_pool.ending, 0);
    }
    pthread_mutex_unlock(&wsc_pool.mutex);
}

/* Has the jobs done by this thread and by those of the pool that wake up in time; returns how many
 * were done, or 0: they cannot be shared now. */
static inline ssize_t wsc_share(wsc_part part, void *jobs, ssize_t count, double deadline) {
    unsigned spins = 0;
    ssize_t done;
    if (atomic_load(&wsc_pool.threads) == 0 || count <= WSC_CHUNK) return 0;
    if (atomic_flag_test_and_set_explicit(&wsc_pool.shared, memory_order_acquire)) return 0;
    wsc_pool.part = part;
    wsc_pool.jobs = jobs;
    wsc_pool.count = count;
    wsc_pool.deadline = deadline;
    atomic_store_explicit(&wsc_pool.next, 0, memory_order_relaxed);
    atomic_store(&wsc_pool.gate, WSC_OPEN);
    atomic_fetch_add(&wsc_pool.turn, 1);
    if (atomic_load(&wsc_pool.asleep)) wsc_futex(FUTEX_WAKE_PRIVATE, INT32_MAX);
    wsc_take_chunks(1);
    atomic_fetch_and(&wsc_pool.gate, ~WSC_OPEN);
    while (atomic_load_explicit(&wsc_pool.gate, memory_order_acquire) != 0)
        if (++spins > WSC_SPINS) sched_yield();
    done = atomic_load_explicit(&wsc_pool.next, memory_order_relaxed);
    atomic_flag_clear_explicit(&wsc_pool.shared, memory_order_release);
    return done < count ? done : count;
}

#else /* nothing wakes threads as quickly there */

static inline int wsc_pool_open(int threads) { (void)threads; return 0; }
static inline void wsc_pool_close(void) {}
static inline ssize_t wsc_share(wsc_part part, void *jobs, ssize_t count, double deadline) {
    (void)part, (void)jobs, (void)count, (void)deadline;
    return 0;
}

#endif

/* Whether sharing pays, as one engine has measured it. A core that something else uses helps with
 * nothing, and takes it from that something: then the jobs are not shared for a while. */
typedef struct {
    double alone;     /* seconds a job without threads, and with them; 0: not measured yet */
    double shared;
    unsigned skip;    /* so many of the next flushes are alone */
    unsigned pause;   /* what `skip` is set to when sharing does not pay */
    unsigned number;  /* of shares, since the last pause */
} wsc_sharing;

_Static_assert(sizeof(wsc_sharing) <= 4 * sizeof(double), "fanout.pxd has room for it");

/* Fewer jobs are not worth waking a thread, which takes 10 us. */
#define WSC_LEAST_JOBS 32
/* One in so many is done alone, to measure that again. */
#define WSC_ALONE_EVERY 32
/* Shares after which it is judged whether they pay: they take less than this part of the time. */
#define WSC_TRIED 4
#define WSC_PAYS 0.9
#define WSC_PAUSE_LEAST 16u
#define WSC_PAUSE_MOST 1024u

static inline void wsc_measure(double *average, double seconds) {
    *average = *average == 0 ? seconds : *average + (seconds - *average) / 8;
}

/* Does the jobs until the deadline, with threads where that has paid; returns whether with them.
 * Without `sharing` this thread does them alone. */
static inline int wsc_do_jobs(wsc_sharing *sharing, wsc_part part, void *jobs, ssize_t count,
                              double deadline) {
    int measured = sharing && count >= WSC_LEAST_JOBS;
    double began = measured ? wsc_now() : 0;
    ssize_t at = 0, last;
    int share = measured && sharing->skip == 0 && sharing->alone != 0;
    if (share && ++sharing->number % WSC_ALONE_EVERY == 0) share = 0;
    if (share && (at = wsc_share(part, jobs, count, deadline)) != 0) {
        wsc_measure(&sharing->shared, (wsc_now() - began) / (double)at);
        if (sharing->number < WSC_TRIED) return 1;
        if (sharing->shared < WSC_PAYS * sharing->alone) {
            sharing->pause = 0;
        } else {
            sharing->pause = sharing->pause ? 2 * sharing->pause : WSC_PAUSE_LEAST;
            if (sharing->pause > WSC_PAUSE_MOST) sharing->pause = WSC_PAUSE_MOST;
            sharing->skip = sharing->pause;
            sharing->shared = sharing->number = 0;
        }
        return 1;
    }
    do {
        last = at + WSC_CHUNK < count ? at + WSC_CHUNK : count;
        part(jobs, at, last);
        at = last;
    } while (at < count && wsc_now() < deadline);
    if (measured) {
        wsc_measure(&sharing->alone, (wsc_now() - began) / (double)at);
        if (sharing->skip) sharing->skip -= 1;
    }
    return 0;
}

#endif
