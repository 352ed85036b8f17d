/* Whether flushes are shared, as send_pool.h decides it by times that are made up here (test_send_pool.py).
 *
 *   send_account COST SEED
 *
 * A shared flush takes COST times as long as one without threads; both times vary, and one in a hundred
 * is twenty times as long. After half of the flushes it is the other way round. Prints, for each half,
 * the mean time of all without threads over that of all as decided, and how many of a hundred were shared. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "send_pool.h"

#define FLUSHES 50000

static unsigned state;

static double chance(void) {
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / (double)(1 << 24);
}

static double varied(double seconds) {
    return seconds * (0.8 + 0.4 * chance()) * (chance() < 0.01 ? 20 : 1);
}

static void run(wsc_account *account, double cost) {
    double units = 100, seconds = 400e-6, decided = 0;
    int shared = 0;
    for (int i = 0; i < FLUSHES; i++) {
        int share = wsc_pays(account);
        double took = varied(share ? cost * seconds : seconds);
        (share ? wsc_was_shared : wsc_was_alone)(account, took, units);
        decided += took;
        shared += share;
    }
    /* One of a hundred is nineteen times longer than it would be. */
    printf("%.4f %.2f\n", FLUSHES * seconds * 1.19 / decided, 100.0 * shared / FLUSHES);
}

int main(int count, char **words) {
    wsc_account account;
    if (count != 3) return 2;
    memset(&account, 0, sizeof account);
    state = (unsigned)atoi(words[2]);
    run(&account, atof(words[1]));
    run(&account, 1 / atof(words[1]));
    return 0;
}
