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
 * 3.  The caller waits for threads that are inside, and never for one that has not woken up. A thread
 *     that is inside is done after its chunk; so no call waits for more than one chunk of each.
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
/* Seconds that the caller looks at the gate before it sleeps until the last thread has left. */
#define WSC_SPIN 50e-6
/* Of `gate`: threads may enter; the caller sleeps on it. The other bits count those inside. */
#define WSC_OPEN 0x80000000u
#define WSC_WAITING 0x40000000u

typedef struct {
    _Atomic uint32_t gate; /* a futex, too */
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

static inline void wsc_futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    /* Waiting fails with EAGAIN or EINTR, and waking with nothing: both loop or go on. */
    (void)syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
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
            wsc_futex(&wsc_pool.turn, FUTEX_WAIT_PRIVATE, seen);
            atomic_fetch_sub(&wsc_pool.asleep, 1);
        }
        seen = turn;
        if (atomic_load(&wsc_pool.ending)) return NULL;
        if (wsc_enter()) {
            wsc_take_chunks(0);
            if (atomic_fetch_sub_explicit(&wsc_pool.gate, 1, memory_order_release) ==
                (WSC_WAITING | 1))
                wsc_futex(&wsc_pool.gate, FUTEX_WAKE_PRIVATE, 1);
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

/* Has a thread start at once where a core is idle, and interrupt nobody where none is: that is
 * SCHED_BATCH. It has the caller's priority otherwise, which may have to wait for it. */
static inline void wsc_be_polite(pthread_t id) {
    struct sched_param none = {0};
    if (sched_getscheduler(0) == SCHED_OTHER) (void)pthread_setschedparam(id, SCHED_BATCH, &none);
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
            wsc_be_polite(wsc_pool.ids[made++]);
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
        wsc_futex(&wsc_pool.turn, FUTEX_WAKE_PRIVATE, INT32_MAX);
        for (i = 0; i < threads; i++) pthread_join(wsc_pool.ids[i], NULL);
        atomic_store(&wsc_pool.ending, 0);
    }
    pthread_mutex_unlock(&wsc_pool.mutex);
}

/* Closes the gate, and waits until nobody is inside. */
static inline void wsc_close_gate(void) {
    double until = 0;
    uint32_t gate = atomic_fetch_and(&wsc_pool.gate, ~WSC_OPEN) & ~WSC_OPEN;
    while ((gate & ~WSC_WAITING) != 0) {
        if (gate & WSC_WAITING) {
            wsc_futex(&wsc_pool.gate, FUTEX_WAIT_PRIVATE, gate);
        } else if (until == 0) {
            until = wsc_now() + WSC_SPIN;
        } else if (wsc_now() >= until) {
            atomic_fetch_or(&wsc_pool.gate, WSC_WAITING);
        }
        gate = atomic_load_explicit(&wsc_pool.gate, memory_order_acquire);
    }
    atomic_store(&wsc_pool.gate, 0);
}

/* Has the jobs done by this thread and by those of the pool that wake up in time; returns how many
 * were done, or 0: they cannot be shared now. */
static inline ssize_t wsc_share(wsc_part part, void *jobs, ssize_t count, double deadline) {
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
    /* A thread for each chunk but the caller's first, at most. */
    if (atomic_load(&wsc_pool.asleep))
        wsc_futex(&wsc_pool.turn, FUTEX_WAKE_PRIVATE, (uint32_t)((count - 1) / WSC_CHUNK));
    wsc_take_chunks(1);
    wsc_close_gate();
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

/* Whether sharing pays, as one engine has measured it for plans of about one size.
 *
 * An account in seconds: `debt` is what sharing has cost beyond `WSC_PAYS` of the time without it,
 * less what it has saved. A core that something else uses helps with nothing, and the debt rises; then
 * nothing is shared until flushes without threads have paid it back, by `WSC_REPAYS` of their time. So
 * trials of threads that do not help cost no more than that part of all. */
typedef struct {
    double alone; /* seconds a unit of work without threads; 0: not measured yet */
    double debt;
    unsigned number; /* of flushes */
    unsigned short trial; /* shares since the last pause */
    unsigned short paused;
} wsc_account;

/* Accounts from `WSC_LEAST_JOBS` units on, each for up to twice as much as the one before. */
#define WSC_ACCOUNTS 8

typedef struct {
    wsc_account accounts[WSC_ACCOUNTS];
} wsc_sharing;

_Static_assert(sizeof(wsc_sharing) <= 24 * sizeof(double), "fanout.pxd has room for it");

/* Fewer jobs are not worth waking a thread, which takes 10 us. */
#define WSC_LEAST_JOBS 32
/* So many bytes are a unit of work, as a job is by itself. */
#define WSC_UNIT_BYTES 16384.0
/* One in so many is done alone, to measure that again; and the first ones. */
#define WSC_ALONE_EVERY 32
#define WSC_ALONE_FIRST 8
/* Shares that pay take less than this part of the time without threads. */
#define WSC_PAYS 0.9
#define WSC_REPAYS 0.02
/* Shares of a trial, unless one costs as much as so many flushes without threads. */
#define WSC_TRIED 4
#define WSC_STALLED 2
/* Seconds that sharing may have saved for worse times. */
#define WSC_CREDIT 0.02

static inline wsc_account *wsc_account_of(wsc_sharing *sharing, double units) {
    int i = 0;
    for (; units >= 2 * WSC_LEAST_JOBS && i < WSC_ACCOUNTS - 1; i++) units /= 2;
    return &sharing->accounts[i];
}

/* Whether the next flush is to be shared. */
static inline int wsc_pays(const wsc_account *account) {
    return !account->paused && account->number >= WSC_ALONE_FIRST &&
           account->number % WSC_ALONE_EVERY != 0;
}

/* Notes that so many units were done without threads. */
static inline void wsc_was_alone(wsc_account *account, double seconds, double units) {
    double each = seconds / units;
    account->number += 1;
    if (account->number <= WSC_ALONE_FIRST) {
        if (account->alone == 0 || each < account->alone) account->alone = each;
    } else {
        /* Something else may have had the core for a while, which is no reason to share. */
        if (each > 1.25 * account->alone) each = 1.25 * account->alone;
        account->alone += (each - account->alone) / 4;
    }
    if (account->paused && (account->debt -= WSC_REPAYS * seconds) <= 0) {
        account->debt = 0;
        account->paused = account->trial = 0;
    }
}

/* Notes that so many units were shared. */
static inline void wsc_was_shared(wsc_account *account, double seconds, double units) {
    double alone = account->alone * units;
    account->number += 1;
    account->debt += seconds - WSC_PAYS * alone;
    if (account->debt < -WSC_CREDIT) account->debt = -WSC_CREDIT;
    if (account->trial < WSC_TRIED) account->trial += 1;
    account->paused =
        account->debt > 0 && (account->trial == WSC_TRIED || account->debt > WSC_STALLED * alone);
}

/* Does the jobs until the deadline, with threads where that has paid; returns whether with them.
 * Without `sharing` this thread does them alone. `bytes` is what the jobs have in all. */
static inline int wsc_do_jobs(wsc_sharing *sharing, wsc_part part, void *jobs, ssize_t count,
                              double bytes, double deadline) {
    wsc_account *account = NULL;
    double began = 0, units = 0;
    ssize_t at = 0, last;
    if (sharing && count >= WSC_LEAST_JOBS) {
        units = (double)count + bytes / WSC_UNIT_BYTES;
        account = wsc_account_of(sharing, units);
        began = wsc_now();
        if (wsc_pays(account)) at = wsc_share(part, jobs, count, deadline);
        if (at) {
            wsc_was_shared(account, wsc_now() - began, units * (double)at / (double)count);
            return 1;
        }
    }
    do {
        last = at + WSC_CHUNK < count ? at + WSC_CHUNK : count;
        part(jobs, at, last);
        at = last;
    } while (at < count && wsc_now() < deadline);
    if (account) wsc_was_alone(account, wsc_now() - began, units * (double)at / (double)count);
    return 0;
}

#endif
