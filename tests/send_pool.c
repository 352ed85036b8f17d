/* The pool of the send phase on its own, under a sanitizer (test_send_pool.py).
 *
 *   send_pool ROUNDS SEED [fork]
 *
 * Two callers at once share jobs of random numbers with random deadlines, and open and close the
 * pool meanwhile. Each job has to be done once or not at all, and those not done have to be the
 * last ones. None may be begun behind the deadline. With `fork`, a child does the same while the
 * threads of its parent go on. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "send_pool.h"

#define MOST_JOBS 700

typedef struct {
    int done[MOST_JOBS];
    int tried;
} wsc_jobs;

static int rounds;

static void fail(const char *what) {
    printf("%s\n", what);
    exit(1);
}

static void part(void *all, ssize_t first, ssize_t last) {
    wsc_jobs *jobs = all;
    volatile int work = 0;
    for (; first < last; first++) {
        for (int i = 0; i < 200; i++) work += i;
        jobs->done[first] += 1;
    }
}

static void *call(void *seed) {
    unsigned state = (unsigned)(size_t)seed;
    wsc_jobs *jobs = malloc(sizeof *jobs);
    wsc_sharing sharing;
    long shared = 0;
    if (!jobs) fail("no memory");
    memset(&sharing, 0, sizeof sharing);
    for (int round = 0; round < rounds; round++) {
        ssize_t count = 1 + rand_r(&state) % MOST_JOBS, at = 0;
        int expired = rand_r(&state) % 4 == 0;
        double budget = expired ? (rand_r(&state) % 50) * 1e-6 : 10.0;
        if (round % 50 == 0) wsc_pool_open(1 + rand_r(&state) % 3);
        memset(jobs, 0, sizeof *jobs);
        if (round % 2) {
            shared += wsc_do_jobs(&sharing, part, jobs, count, 0, wsc_now() + budget);
        } else if (wsc_share(part, jobs, count, wsc_now() + budget)) {
            shared += 1;
        } else {
            part(jobs, 0, count);
        }
        while (at < count && jobs->done[at] == 1) at += 1;
        if (at == 0) fail("the first job was not done");
        if (!expired && at < count) fail("a job was not done, or twice");
        for (; at < MOST_JOBS; at++)
            if (jobs->done[at]) fail("a job was done behind one that was not");
        if (round % 50 == 49) wsc_pool_close();
    }
    if (rounds % 50) wsc_pool_close();
    free(jobs);
    return (void *)shared;
}

/* A chunk ends behind the deadline. */
static void late_part(void *all, ssize_t first, ssize_t last) {
    part(all, first, last);
    while (wsc_now() < wsc_pool.deadline) {}
}

/* Each thread, and the caller, does at most one chunk of such jobs. */
static void keep_the_deadline(void) {
    wsc_jobs jobs;
    for (int round = 0; round < 200; round++) {
        ssize_t done;
        if (wsc_pool_open(3) != 3) fail("no threads");
        memset(&jobs, 0, sizeof jobs);
        done = wsc_share(late_part, &jobs, MOST_JOBS, wsc_now() + 200e-6);
        if (done < WSC_CHUNK || done > 4 * WSC_CHUNK) fail("a chunk was begun behind the deadline");
        wsc_pool_close();
    }
}

static long both(unsigned seed) {
    pthread_t other;
    void *theirs;
    long ours;
    if (pthread_create(&other, NULL, call, (void *)(size_t)(seed + 1))) fail("no thread");
    ours = (long)call((void *)(size_t)seed);
    pthread_join(other, &theirs);
    return ours + (long)theirs;
}

int main(int count, char **words) {
    unsigned seed = (unsigned)atoi(words[2]);
    long shared;
    rounds = atoi(words[1]);
    if (count > 3) {
        int status;
        pid_t child;
        if (wsc_pool_open(2) != 2) fail("no threads");
        child = fork();
        if (child == 0) {
            if (atomic_load(&wsc_pool.threads)) fail("the child believes in its parent's threads");
            exit(both(seed) ? 0 : 1);
        }
        shared = both(seed);
        wsc_pool_close();
        if (waitpid(child, &status, 0) < 0 || status) fail("the child failed");
    } else {
        keep_the_deadline();
        shared = both(seed);
    }
    if (!shared) fail("nothing was shared");
    if (atomic_load(&wsc_pool.threads)) fail("threads were left");
    printf("%ld shares\n", shared);
    return 0;
}
