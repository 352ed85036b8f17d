/* Other ways to hand a fan-out to the kernel, and their costs: docs/performance.md.
 *
 *     cc -O2 -o send_phase send_phase.c && ./send_phase [ROUNDS]
 *
 * 1,000 TCP connections over loopback. This process sends, on the first core that it may use; a child
 * reads, on the last one. A pass is one send to each connection, and only passes are timed: between two
 * of them the child reads all. The ways take turns pass by pass; of a round the fastest pass
 * counts, in which nobody else had the core; figures are medians of the rounds.
 * Where the kernel refuses io_uring, that is said and the rest is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CLIENTS = 1000, PASSES = 20, FRAMES = 32, MOST_ROUNDS = 99, FLAGS = MSG_NOSIGNAL | MSG_DONTWAIT };

static int fds[CLIENTS];
static int clients = CLIENTS;
static _Atomic uint64_t *read_so_far;
static uint64_t sent_so_far;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double seconds(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void pin(int last)
{
    cpu_set_t set, one;
    int found = -1;
    sched_getaffinity(0, sizeof set, &set);
    for (int cpu = 0; cpu < CPU_SETSIZE && (last || found < 0); cpu++)
        if (CPU_ISSET(cpu, &set)) found = cpu;
    CPU_ZERO(&one);
    CPU_SET(found, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static void read_all(const int *ends)
{
    static char buffer[1 << 18];
    struct epoll_event events[256];
    int poll = epoll_create1(0);
    pin(1);
    for (int i = 0; i < CLIENTS; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = ends[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, ends[i], &event);
    }
    for (;;) {
        int count = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            ssize_t n = recv(events[i].data.fd, buffer, sizeof buffer, 0);
            if (n == 0) exit(0);
            if (n > 0) atomic_fetch_add(read_so_far, (uint64_t)n);
        }
    }
}

static void connect_all(void)
{
    int ends[CLIENTS], one = 1, size = 8 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&address, length) < 0 || listen(listening, 128) < 0) die("listen");
    getsockname(listening, (struct sockaddr *)&address, &length);
    for (int i = 0; i < CLIENTS; i++) {
        ends[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (ends[i] < 0) die("socket");
        connect(ends[i], (struct sockaddr *)&address, length);
        fds[i] = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
        if (fds[i] < 0) die("accept");
        setsockopt(fds[i], IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof one);
        /* So that a pass of large frames is taken whole, where we are root. */
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    }
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int i = 0; i < CLIENTS; i++) close(fds[i]);
        read_all(ends);
    }
    for (int i = 0; i < CLIENTS; i++) close(ends[i]);
    close(listening);
    pin(0);
}

static void took(ssize_t n)
{
    if (n > 0) sent_so_far += (uint64_t)n;
    else if (n < 0 && errno != EAGAIN) die("send");
}

static void wait_until_read(void)
{
    while (atomic_load(read_so_far) < sent_so_far) usleep(20);
}

/* --- io_uring, by its system calls alone --- */

struct ring {
    int fd, fixed;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static int open_ring(struct ring *ring, unsigned flags, int fixed)
{
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    p.flags = flags;
    ring->fixed = fixed;
    ring->fd = (int)syscall(SYS_io_uring_setup, 1024, &p);
    if (ring->fd < 0) return -errno;
    size_t sq_size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq_size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    int how = MAP_SHARED | MAP_POPULATE, prot = PROT_READ | PROT_WRITE;
    char *sq = mmap(NULL, sq_size, prot, how, ring->fd, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_size, prot, how, ring->fd, IORING_OFF_CQ_RING);
    ring->sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), prot, how, ring->fd, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || ring->sqes == MAP_FAILED) die("mmap");
    ring->sq_tail = (unsigned *)(sq + p.sq_off.tail);
    ring->sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    ring->sq_array = (unsigned *)(sq + p.sq_off.array);
    ring->cq_head = (unsigned *)(cq + p.cq_off.head);
    ring->cq_tail = (unsigned *)(cq + p.cq_off.tail);
    ring->cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    if (fixed && syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_FILES, fds, CLIENTS) < 0) return -errno;
    return 0;
}

static void ring_some(struct ring *ring, int first, int last, const void *data, unsigned size)
{
    unsigned tail = *ring->sq_tail;
    int due = last - first;
    for (int i = first; i < last; i++, tail++) {
        unsigned at = tail & *ring->sq_mask;
        struct io_uring_sqe *sqe = &ring->sqes[at];
        memset(sqe, 0, sizeof *sqe);
        sqe->opcode = IORING_OP_SEND;
        sqe->fd = ring->fixed ? i : fds[i];
        sqe->flags = ring->fixed ? IOSQE_FIXED_FILE : 0;
        sqe->addr = (uint64_t)(uintptr_t)data;
        sqe->len = size;
        sqe->msg_flags = FLAGS;
        sqe->user_data = (uint64_t)i;
        ring->sq_array[at] = at;
    }
    atomic_store_explicit((_Atomic unsigned *)ring->sq_tail, tail, memory_order_release);
    long n = syscall(SYS_io_uring_enter, ring->fd, due, due, IORING_ENTER_GETEVENTS, NULL, 0);
    if (n != due) die("io_uring_enter");
    unsigned head = *ring->cq_head;
    unsigned end = atomic_load_explicit((_Atomic unsigned *)ring->cq_tail, memory_order_acquire);
    if (end - head != (unsigned)due) die("completions are missing");
    for (; head != end; head++) {
        int result = ring->cqes[head & *ring->cq_mask].res;
        errno = result < 0 ? -result : 0;
        took(result < 0 ? -1 : result);
    }
    atomic_store_explicit((_Atomic unsigned *)ring->cq_head, head, memory_order_release);
}

static void ring_pass(struct ring *ring, int at_once, const void *data, unsigned size)
{
    for (int i = 0; i < clients; i += at_once) {
        int last = i + at_once;
        ring_some(ring, i, last < clients ? last : clients, data, size);
    }
}

/* --- the ways --- */

static struct ring plain_ring, tuned_ring;
static char *frames[FRAMES];
static char *joined;
static unsigned frame_size = 132;

static void by_send(void)
{
    for (int i = 0; i < clients; i++) took(send(fds[i], frames[0], frame_size, FLAGS));
}

static void by_syscall(void)
{
    for (int i = 0; i < clients; i++) {
        ssize_t n;
#ifdef __x86_64__
        register long r10 __asm__("r10") = FLAGS;
        register long r8 __asm__("r8") = 0;
        register long r9 __asm__("r9") = 0;
        __asm__ volatile("syscall"
                         : "=a"(n)
                         : "a"(SYS_sendto), "D"((long)fds[i]), "S"(frames[0]), "d"((long)frame_size), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
        if (n < 0) {
            errno = (int)-n;
            n = -1;
        }
#else
        n = syscall(SYS_sendto, fds[i], frames[0], frame_size, FLAGS, NULL, 0);
#endif
        took(n);
    }
}

static void by_syscall_function(void)
{
    for (int i = 0; i < clients; i++) took(syscall(SYS_sendto, fds[i], frames[0], frame_size, FLAGS, NULL, 0));
}

static void gather(int count)
{
    struct iovec iov[FRAMES];
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    for (int i = 0; i < count; i++) iov[i] = (struct iovec){frames[i], frame_size};
    for (int i = 0; i < clients; i++) took(sendmsg(fds[i], &message, FLAGS));
}

static void join(void)
{
    for (unsigned i = 0; i < FRAMES; i++) memcpy(joined + i * frame_size, frames[i], frame_size);
}

static void by_sendmsg(void) { gather(1); }
static void by_ring(void) { ring_pass(&plain_ring, CLIENTS, frames[0], frame_size); }
static void by_ring_of_64(void) { ring_pass(&plain_ring, 64, frames[0], frame_size); }
static void by_ring_of_8(void) { ring_pass(&plain_ring, 8, frames[0], frame_size); }
static void by_tuned_ring(void) { ring_pass(&tuned_ring, CLIENTS, frames[0], frame_size); }
static void by_joined_ring(void)
{
    join();
    ring_pass(&plain_ring, CLIENTS, joined, FRAMES * frame_size);
}

static void by_iovecs(void) { gather(FRAMES); }

static void by_one_copy(void)
{
    join();
    for (int i = 0; i < clients; i++) took(send(fds[i], joined, FRAMES * frame_size, FLAGS));
}

static void by_own_copies(void)
{
    for (int i = 0; i < clients; i++) {
        join();
        took(send(fds[i], joined, FRAMES * frame_size, FLAGS));
    }
}

struct way {
    const char *name;
    void (*pass)(void);
    int frames; /* to each, in a pass */
    double wall[MOST_ROUNDS], cpu[MOST_ROUNDS], ratio[MOST_ROUNDS]; /* seconds a send, the least of a round's passes */
};

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void timed(struct way *way, int round)
{
    uint64_t before = sent_so_far;
    double due = (double)clients * frame_size * way->frames;
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    way->pass();
    cpu = (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / clients;
    wall = (seconds(CLOCK_MONOTONIC) - wall) / clients;
    if ((double)(sent_so_far - before) < due)
        fprintf(stderr, "%s: the kernel took %.0f %%\n", way->name, 100 * (double)(sent_so_far - before) / due);
    wait_until_read();
    if (wall < way->wall[round]) way->wall[round] = wall;
    if (cpu < way->cpu[round]) way->cpu[round] = cpu;
}

static void measure(const char *title, struct way *ways, int count, int rounds, int passes)
{
    for (int round = 0; round < rounds; round++) {
        for (int k = 0; k < count; k++) ways[k].wall[round] = ways[k].cpu[round] = 1;
        /* Pass by pass, from any one of them in either direction, so that whatever else runs here meets all alike. */
        for (int pass = 0; pass < passes; pass++) {
            int first = rand() % count, step = rand() % 2 ? 1 : count - 1;
            for (int k = 0; k < count; k++) timed(&ways[(first + k * step) % count], round);
        }
    }
    printf("\n| %s | sends a second | CPU us a send | rate, of the first | lowest to highest |\n| --- | --- | --- | --- | --- |\n", title);
    for (int k = count - 1; k >= 0; k--)
        for (int i = 0; i < rounds; i++) ways[k].ratio[i] = ways[0].wall[i] / ways[k].wall[i];
    for (int k = 0; k < count; k++) {
        struct way *way = &ways[k];
        qsort(way->wall, (size_t)rounds, sizeof(double), ascending);
        qsort(way->cpu, (size_t)rounds, sizeof(double), ascending);
        qsort(way->ratio, (size_t)rounds, sizeof(double), ascending);
        printf("| %s | %.0f | %.2f | %.3f | %.3f to %.3f |\n", way->name, 1 / way->wall[rounds / 2],
               way->cpu[rounds / 2] * 1e6, way->ratio[rounds / 2], way->ratio[0], way->ratio[rounds - 1]);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const unsigned SIZES[] = {16, 128, 512, 1024, 2048, 4096, 16384};
    int rounds = argc > 1 ? atoi(argv[1]) : 9;
    struct rlimit limit;
    if (rounds < 1 || rounds > MOST_ROUNDS) return fprintf(stderr, "1 to %d rounds\n", MOST_ROUNDS), 2;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    read_so_far = mmap(NULL, sizeof *read_so_far, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < FRAMES; i++) {
        frames[i] = malloc(SIZES[6]);
        memset(frames[i], 'a' + i % 26, SIZES[6]);
    }
    joined = malloc(FRAMES * SIZES[6]);
    connect_all();

    int refused = open_ring(&plain_ring, 0, 0);
    if (!refused) refused = open_ring(&tuned_ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 1);
    if (refused) printf("io_uring is refused: %s\n", strerror(-refused));
    struct way one[] = {
        {"send()", by_send, 1},
        {"the system call, inlined", by_syscall, 1},
        {"the system call by syscall()", by_syscall_function, 1},
        {"sendmsg, 1 iovec", by_sendmsg, 1},
        {"io_uring, one enter", by_ring, 1},
        {"io_uring, one enter for 64", by_ring_of_64, 1},
        {"io_uring, one enter for 8", by_ring_of_8, 1},
        {"io_uring, one enter, registered files", by_tuned_ring, 1},
    };
    measure("one frame of 132 bytes to each of 1,000", one, refused ? 4 : 8, rounds, PASSES);
    struct way several[] = {{"send()", by_one_copy, FRAMES}, {"io_uring, one enter", by_joined_ring, FRAMES}};
    if (getenv("FIRST_ONLY")) return 0;
    if (!refused) measure("32 frames of 132 bytes to each of 1,000, copied together once", several, 2, rounds, PASSES);

    clients = 100;
    for (unsigned i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        char title[80];
        struct way sized[] = {
            {"sendmsg, 32 iovecs", by_iovecs, FRAMES},
            {"one copy for all, send", by_one_copy, FRAMES},
            {"a copy for each, send", by_own_copies, FRAMES},
        };
        frame_size = SIZES[i];
        snprintf(title, sizeof title, "32 frames of %u bytes (%u in all) to each of 100", frame_size, FRAMES * frame_size);
        measure(title, sized, 3, rounds, PASSES);
    }
    return 0;
}
