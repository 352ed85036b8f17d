/* The send phase with helping threads beside the same one without: docs/performance.md.
 *
 *     cc -O2 -pthread -I../../src_cy -o send_threads send_threads.c && ./send_threads [OPTION VALUE]...
 *
 *     threads 1       that help
 *     rounds 5        of each cell of the table
 *     seconds 0.4     of a round
 *     patience 4      so many times as many rounds may be thrown away
 *     loads idle,half,other,both,nice,quota
 *     clients 8,16,32,64,128,256,1000,4000
 *     bytes 128,1024,16384
 *     frames 1,32     that each client gets in a flush
 *
 * A pass is one flush of the hub: `wsc_do_jobs` of src_cy/send_pool.h over a plan of at most 2,048
 * sends, with a deadline of 5 ms. Passes with threads and passes without take turns, in one process
 * and over the same connections. The receivers need no CPU while a pass is timed: they are sockets of
 * this process, whose bytes are thrown away between two passes. A cell begins without experience, so
 * that the trials of the threads count. Figures are sends a second with threads, over those without:
 * the median of the rounds, and the lowest to the highest.
 *
 * Loads: `idle` no other work; `half` a program that has one core for 5 ms of every 10; `other` a program
 * that has one core; `both` one on each core; `nice` the same at nice 10; `quota` a control group with the
 * time of one core, where whole turns are timed, since the kernel may stop us at any place.
 * `rest N`, for root and a machine that never is quiet: all of this has a priority at which others give way,
 * and sleeps after each round N times as long as that took. Then each round counts. Else a round counts if other processes, and other machines of the host, used at most 5 % of the cores
 * in it. With `both` and `nice` the cores are busy anyway, and each counts.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "send_pool.h"

enum { MOST = 4000, PLAN = 2048, MOST_FRAMES = 32, MOST_BYTES = 16384, MOST_ROUNDS = 99, COPY_MAX = 65536, NOT_TRIED = 1 };

typedef struct {
    int fd, end;
    ssize_t result;
} wsc_job;

static wsc_job all[MOST], plan[PLAN];
static struct iovec iov[MOST_FRAMES];
static int iov_count;
static ssize_t due; /* bytes that a send is given */
static int clients, at, threads = 1;
static double round_seconds = 0.4;
static int patience = 4;
static double rest; /* 0: others have the same priority as we */
static pid_t burners[2];
static int burning;
static _Atomic uint64_t *burnt;
static cpu_set_t all_cores;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* --- connections --- */

static void connect_all(int count) {
    int one = 1, size = 4 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listening, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    if (bind(listening, (struct sockaddr *)&address, length) < 0 || listen(listening, 128) < 0) die("listen");
    getsockname(listening, (struct sockaddr *)&address, &length);
    for (int i = 0; i < count; i++) {
        all[i].end = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (all[i].end < 0) die("socket");
        setsockopt(all[i].end, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
        connect(all[i].end, (struct sockaddr *)&address, length);
        all[i].fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
        if (all[i].fd < 0) die("accept");
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    close(listening);
}

static void throw_away(int end, ssize_t bytes) {
    static char buffer[1 << 16]; /* MSG_TRUNC: nothing is copied */
    while (bytes > 0) {
        ssize_t n = recv(end, buffer, 1 << 30, MSG_TRUNC | MSG_DONTWAIT);
        if (n > 0) bytes -= n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR)) die("recv");
        else sched_yield();
    }
}

/* --- a pass --- */

static void send_some(void *jobs, ssize_t first, ssize_t last) {
    for (wsc_job *job = jobs; first < last; first++)
        job[first].result = wsc_send(job[first].fd, iov, iov_count);
}

typedef struct {
    double seconds, sends, burnt, passes, shared;
} wsc_sum;

/* One flush, of those whose turn it is; with `sharing` threads may help. */
static void pass(wsc_sharing *sharing, wsc_sum *sum, int whole) {
    int count = clients < PLAN ? clients : PLAN, done = 0;
    uint64_t before = atomic_load(burnt);
    double began = wsc_now(), ended;
    for (int i = 0; i < count; i++) {
        plan[i] = all[(at + i) % clients];
        plan[i].result = NOT_TRIED;
    }
    if (!whole) began = wsc_now();
    sum->shared += wsc_do_jobs(sharing, send_some, plan, count, (double)due * count, wsc_now() + 0.005);
    ended = wsc_now();
    sum->burnt += (double)(atomic_load(burnt) - before);
    while (done < count && plan[done].result != NOT_TRIED) {
        if (plan[done].result != due) fprintf(stderr, "a send took %zd of %zd bytes\n", plan[done].result, due);
        throw_away(plan[done].end, plan[done].result > 0 ? plan[done].result : 0);
        done += 1;
    }
    at = (at + done) % clients;
    sum->passes += 1;
    sum->seconds += (whole ? wsc_now() : ended) - began;
    sum->sends += done;
}

/* --- loads --- */

static void use_core(int number) {
    cpu_set_t set, one;
    sched_getaffinity(0, sizeof set, &set);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set) && number-- == 0) CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static void burn(int core, int half, int niceness) {
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child < 0) die("fork");
    if (child) {
        burners[burning++] = child;
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    use_core(core);
    if (niceness) (void)!nice(niceness);
    for (;;) {
        double until = wsc_now() + 0.005;
        while (wsc_now() < until) {
            for (volatile int i = 0; i < 1000; i++) {}
            atomic_fetch_add(burnt, 1);
        }
        if (half) usleep(5000);
    }
}

static void burn_no_more(void) {
    while (burning) {
        kill(burners[--burning], SIGKILL);
        waitpid(burners[burning], NULL, 0);
    }
}

static int written(const char *place, const char *name, const char *text) {
    char path[256];
    int fd;
    ssize_t n;
    snprintf(path, sizeof path, "%s/%s", place, name);
    fd = open(path, O_WRONLY);
    if (fd < 0) return 0;
    n = write(fd, text, strlen(text));
    close(fd);
    return n == (ssize_t)strlen(text);
}

/* Puts this process into a group with the time of one core, or back; 0: the system has no such group. */
static int bound(int on) {
    static const char *roots[] = {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"};
    char place[128], text[32];
    snprintf(text, sizeof text, "%d", (int)getpid());
    for (int i = 0; i < 2; i++) {
        snprintf(place, sizeof place, "%s/wsc-send-threads", roots[i]);
        if (!on) {
            if (access(place, F_OK) == 0) return written(roots[i], "cgroup.procs", text) && rmdir(place) == 0;
        } else if (mkdir(place, 0755) == 0) {
            if ((written(place, "cpu.cfs_quota_us", "100000") || written(place, "cpu.max", "100000 100000")) &&
                written(place, "cgroup.procs", text))
                return 1;
            rmdir(place);
        }
    }
    return 0;
}

static const char *LOADS[] = {"idle", "half", "other", "both", "nice", "quota"};
enum { IDLE, HALF, OTHER, BOTH, NICE, QUOTA, LOAD_COUNT };

/* A core counts as idle where others give way at once; beside programs the kernel shares as it does at nice 0. */
static void give_way(int load) {
    struct sched_param first = {.sched_priority = 1}, none = {0};
    if (rest == 0) return;
    if (sched_setscheduler(0, load == IDLE ? SCHED_FIFO : SCHED_OTHER, load == IDLE ? &first : &none)) die("priority");
    if (load != IDLE && setpriority(PRIO_PROCESS, 0, -20)) die("priority");
}

static int begin_load(int load) {
    give_way(load);
    if (wsc_pool_open(threads) < threads) die("threads");
    if (load == HALF || load == OTHER) {
        burn(1, load == HALF, 0);
        /* This thread alone: its core is its own, and those that help may run anywhere. */
        use_core(0);
        if (rest != 0 && sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1})) die("priority");
    }
    for (int core = 0; core < 2 && (load == BOTH || load == NICE); core++) burn(core, 0, load == NICE ? 10 : 0);
    return load != QUOTA || bound(1);
}

static void end_load(int load) {
    burn_no_more();
    wsc_pool_close();
    sched_setaffinity(0, sizeof all_cores, &all_cores);
    if (load == QUOTA && !bound(0)) die("the control group");
}

/* --- who else uses the cores --- */

static double seconds_of(pid_t process) {
    clockid_t id;
    if (process == 0) return wsc_clock(CLOCK_PROCESS_CPUTIME_ID);
    return clock_getcpuclockid(process, &id) == 0 ? wsc_clock(id) : 0;
}

/* CPU seconds so far of all others, and of other machines on this host. */
static double used_by_others(void) {
    unsigned long long user, nice, system, idle, wait, irq, softirq, steal;
    double used;
    FILE *file = fopen("/proc/stat", "r");
    if (!file || fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &wait, &irq,
                        &softirq, &steal) != 8)
        die("/proc/stat");
    fclose(file);
    used = (double)(user + nice + system + irq + softirq + steal) / (double)sysconf(_SC_CLK_TCK) - seconds_of(0);
    for (int i = 0; i < burning; i++) used -= seconds_of(burners[i]);
    return used;
}

/* --- a cell --- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct {
    double ratio[MOST_ROUNDS];
    double pace;   /* of the other program, with threads over without */
    double passes, shared; /* with threads: all, and those that were shared */
    int rounds, thrown;
} wsc_cell;

static double counted(int load, wsc_sharing *sharing, wsc_sum *alone, wsc_sum *helped) {
    int whole = load == QUOTA;
    double before = used_by_others(), began = wsc_now(), half = round_seconds / 2;
    unsigned turn = (unsigned)rand();
    if (whole) {
        for (unsigned k = 0; k < 2; k++) {
            int ours = (turn + k) & 1;
            usleep(100000); /* a new period of the group */
            for (double until = wsc_now() + half; wsc_now() < until;) pass(ours ? sharing : NULL, ours ? helped : alone, 1);
        }
    } else {
        while (alone->seconds + helped->seconds < half && wsc_now() - began < 10 * half) {
            int ours = turn++ & 1;
            pass(ours ? sharing : NULL, ours ? helped : alone, 0);
            ours = !ours;
            pass(ours ? sharing : NULL, ours ? helped : alone, 0);
            turn = (turn * 1103515245u + 12345u) >> 1;
        }
    }
    return (used_by_others() - before) / (wsc_now() - began) / (double)sysconf(_SC_NPROCESSORS_ONLN);
}

static void measure(int load, int rounds, wsc_cell *cell) {
    wsc_sharing sharing;
    double paces[MOST_ROUNDS];
    memset(&sharing, 0, sizeof sharing);
    memset(cell, 0, sizeof *cell);
    while (cell->rounds < rounds && cell->thrown < patience * rounds) {
        wsc_sum alone = {0}, helped = {0};
        double began = wsc_now(), others = counted(load, &sharing, &alone, &helped);
        usleep((useconds_t)(rest * (wsc_now() - began) * 1e6));
        if (others > 0.05 && rest == 0 && load != BOTH && load != NICE) {
            cell->thrown += 1;
            usleep(100000);
            continue;
        }
        paces[cell->rounds] = alone.burnt ? helped.burnt / helped.seconds / (alone.burnt / alone.seconds) : 1;
        cell->passes += helped.passes;
        cell->shared += helped.shared;
        cell->ratio[cell->rounds++] = helped.sends / helped.seconds / (alone.sends / alone.seconds);
    }
    qsort(cell->ratio, (size_t)cell->rounds, sizeof(double), ascending);
    qsort(paces, (size_t)cell->rounds, sizeof(double), ascending);
    cell->pace = cell->rounds ? paces[cell->rounds / 2] : 1;
}

static int numbers(char *text, int *out, int most) {
    int count = 0;
    for (char *word = strtok(text, ","); word && count < most; word = strtok(NULL, ",")) out[count++] = atoi(word);
    return count;
}

int main(int argc, char **argv) {
    static char frame[MOST_BYTES + 16], joined[MOST_FRAMES * (MOST_BYTES + 16)];
    int sizes[16] = {8, 16, 32, 64, 128, 256, 1000, 4000}, bytes[16] = {128, 1024, 16384}, frames[16] = {1, 32};
    int size_count = 8, bytes_count = 3, frames_count = 2, rounds = 5, most = 0, thrown = 0, loads[LOAD_COUNT], load_count = 0;
    double worst = 9, pace[LOAD_COUNT] = {0};
    int cells[LOAD_COUNT] = {0};
    char *wanted = NULL;
    struct rlimit limit;
    for (int i = 1; i + 1 < argc; i += 2) {
        char *value = argv[i + 1];
        if (!strcmp(argv[i], "threads")) threads = atoi(value);
        else if (!strcmp(argv[i], "rounds")) rounds = atoi(value);
        else if (!strcmp(argv[i], "seconds")) round_seconds = atof(value);
        else if (!strcmp(argv[i], "rest")) rest = atof(value);
        else if (!strcmp(argv[i], "patience")) patience = atoi(value);
        else if (!strcmp(argv[i], "loads")) wanted = value;
        else if (!strcmp(argv[i], "clients")) size_count = numbers(value, sizes, 16);
        else if (!strcmp(argv[i], "bytes")) bytes_count = numbers(value, bytes, 16);
        else if (!strcmp(argv[i], "frames")) frames_count = numbers(value, frames, 16);
        else return fprintf(stderr, "no option %s\n", argv[i]), 2;
    }
    for (int load = 0; load < LOAD_COUNT; load++)
        if (!wanted || strstr(wanted, LOADS[load])) loads[load_count++] = load;
    for (int i = 0; i < size_count; i++) most = sizes[i] > most ? sizes[i] : most;
    if (rounds < 1 || rounds > MOST_ROUNDS || most > MOST) return fprintf(stderr, "too many\n"), 2;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    sched_getaffinity(0, sizeof all_cores, &all_cores);
    burnt = mmap(NULL, sizeof *burnt, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    connect_all(most);

    printf("| clients x bytes x frames |");
    for (int i = 0; i < load_count; i++) printf(" %s |", LOADS[loads[i]]);
    printf("\n| --- |");
    for (int i = 0; i < load_count; i++) printf(" --- |");
    printf("\n");
    for (int f = 0; f < frames_count; f++)
        for (int b = 0; b < bytes_count; b++)
            for (int s = 0; s < size_count; s++) {
                size_t size = (size_t)bytes[b] + (bytes[b] < 126 ? 2 : bytes[b] < 65536 ? 4 : 10);
                clients = sizes[s];
                at = 0;
                due = (ssize_t)size * frames[f];
                if (bytes[b] > MOST_BYTES || frames[f] > MOST_FRAMES) return fprintf(stderr, "too much\n"), 2;
                /* As the plan of a flush: short sequences are copied together, longer ones are not. */
                iov_count = due <= COPY_MAX ? 1 : frames[f];
                if (iov_count == 1) iov[0] = (struct iovec){joined, (size_t)due};
                else
                    for (int i = 0; i < frames[f]; i++) iov[i] = (struct iovec){frame, size};
                printf("| %d x %d x %d |", clients, bytes[b], frames[f]);
                for (int i = 0; i < load_count; i++) {
                    wsc_cell cell;
                    if (!begin_load(loads[i])) {
                        wsc_pool_close();
                        printf(" refused |");
                        continue;
                    }
                    measure(loads[i], rounds, &cell);
                    end_load(loads[i]);
                    thrown += cell.thrown;
                    if (cell.rounds == 0) {
                        printf(" never quiet |");
                        continue;
                    }
                    printf(" %.2f (%.2f to %.2f), %.0f %%%s |", cell.ratio[cell.rounds / 2], cell.ratio[0],
                           cell.ratio[cell.rounds - 1], 100 * cell.shared / cell.passes, cell.rounds < rounds ? " *" : "");
                    fflush(stdout);
                    if (cell.ratio[cell.rounds / 2] < worst) worst = cell.ratio[cell.rounds / 2];
                    pace[loads[i]] += cell.pace;
                    cells[loads[i]] += 1;
                }
                printf("\n");
            }
    printf("\n* fewer than %d rounds. The lowest median is %.2f; %d rounds were thrown away.\n", rounds, worst, thrown);
    for (int i = HALF; i <= NICE; i++)
        if (cells[i]) printf("Pace of the other program during sends with threads, over that without, %s: %.2f\n", LOADS[i], pace[i] / cells[i]);
    return 0;
}
