/* Latencies: a log-linear histogram, 128 steps per power of two, so within 0.8 %. It takes any number of values
 * in constant memory, and its tail is as exact as its middle. */
#ifndef LATENCY_H
#define LATENCY_H
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

enum { STEP_BITS = 8, STEPS = 1 << STEP_BITS };

struct histogram {
    uint64_t counts[(64 - STEP_BITS + 1) * STEPS];
    uint64_t count, max;
    double sum;
};

static inline void record(struct histogram *h, uint64_t ns)
{
    unsigned shift = ns < STEPS ? 0 : 63u - (unsigned)__builtin_clzll(ns) - STEP_BITS + 1;
    h->counts[shift * STEPS + (ns >> shift)]++;
    h->count++;
    h->sum += (double)ns;
    if (ns > h->max)
        h->max = ns;
}

static double percentile_us(const struct histogram *h, double p)
{
    uint64_t wanted = (uint64_t)((double)h->count * p / 100.0 + 0.999999);
    uint64_t seen = 0;
    for (size_t i = 0; i < sizeof h->counts / sizeof *h->counts; i++) {
        seen += h->counts[i];
        if (seen >= wanted && seen > 0) {
            uint64_t value = (uint64_t)(i % STEPS) << (i / STEPS); /* inverse of record */
            return (double)(value < h->max ? value : h->max) / 1e3;
        }
    }
    return 0;
}

static void print_histogram(const char *name, const struct histogram *h)
{
    static const double percents[] = {50, 90, 99, 99.9, 99.99};
    printf(" \"%s\": {\"samples\": %" PRIu64 ", \"mean\": %.1f", name, h->count,
           h->count ? h->sum / (double)h->count / 1e3 : 0);
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++)
        printf(", \"p%g\": %.1f", percents[i], percentile_us(h, percents[i]));
    printf(", \"max\": %.1f},\n", (double)h->max / 1e3);
}

#endif
