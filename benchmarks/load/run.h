/* The run: the event loop, warm-up, what is measured, and the end. */

/* Markers for the two descriptors that are no connections. */
static struct conn timer_event, stdin_event;
static bool stdin_closed;

static void turn(int timeout_ms)
{
    static struct epoll_event events[MAX_EVENTS];
    int n = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout_ms);
    uint64_t delivered = delivered_total;
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c == &timer_event) {
            uint64_t expirations;
            if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                give_up("timerfd", strerror(errno));
        } else if (c == &stdin_event) {
            char drop[256];
            stdin_closed = read(0, drop, sizeof drop) <= 0;
        } else if (c->state != DEAD) {
            on_event(c, events[i].events);
            if (opt.mode == ECHO && publishing && opt.rate == 0) /* no batches: each answers as it hears */
                pump_ready();
        }
    }
    if (delivered != delivered_total)
        last_progress = now;
    if (timed_out)
        give_up("timeout", "");
}

static void open_connections(void)
{
    connect_began = clock_now();
    open_more();
    while (connect_ended == 0 && failure[0] == 0) {
        turn(100);
        open_more();
    }
}

static void publish(void)
{
    if (opt.rate > 0)
        pump_scheduled();
    else if (opt.random)
        pump_random();
    else
        pump_ready();
}

struct measurement {
    uint64_t from, to, deliveries, messages;
    double cpu, server_cpu;
};

static struct measurement snapshot(void)
{
    return (struct measurement){
        .from = clock_now(), .deliveries = delivered_total, .messages = published_total, .cpu = cpu_seconds(),
        .server_cpu = server_cpu_seconds()};
}

static struct measurement measured_since(struct measurement start)
{
    struct measurement end = snapshot();
    return (struct measurement){.from = start.from, .to = end.from,
                                .deliveries = end.deliveries - start.deliveries,
                                .messages = end.messages - start.messages, .cpu = end.cpu - start.cpu,
                                .server_cpu = end.server_cpu - start.server_cpu};
}

/* Warm up, measure, let what is under way arrive. */
static struct measurement run(void)
{
    struct measurement start = {0}, result = {0};
    bool measuring = false, measured = false;

    if (opt.rate > 0) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &timer_event};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
        prctl(PR_SET_TIMERSLACK, TIMER_NS);
    }
    began = last_progress = clock_now();
    measure_from = began + (uint64_t)(opt.warmup * 1e9);
    if (opt.seconds > 0)
        measure_to = measure_from + (uint64_t)(opt.seconds * 1e9);
    publishing = true;

    while (failure[0] == 0 && (publishing || outstanding > 0)) {
        uint64_t moment = clock_now();
        if (!measuring && moment >= measure_from) {
            measuring = true;
            start = snapshot();
            measure_from = start.from;
            if (opt.messages > 0)
                publish_limit = published_total + opt.messages;
        }
        if (measuring && !measured && moment >= measure_to) {
            measured = true;
            result = measured_since(start);
            if (opt.rate == 0) /* in an open loop the last message that is due ends it, however late */
                publishing = false;
        }
        if (outstanding > 0 && moment > last_progress + NO_PROGRESS)
            give_up("no message came for 5 seconds", "");
        if (open_count == 0)
            give_up("all connections are gone", "");
        publish();
        turn(100);
    }
    if (measuring && !measured)
        result = measured_since(start);
    publishing = false;
    for (uint64_t until = clock_now() + LINGER; failure[0] == 0 && clock_now() < until;)
        turn(5);
    for (uint32_t i = 0; i < opt.connections; i++) {
        for (uint32_t j = 0; j < cursor_count && conns[i].state == OPEN && conns[i].next != NULL; j++) {
            const struct stream *s = stream_at(&conns[i], j);
            lost += s == NULL ? 0 : s->published - conns[i].next[j];
        }
    }
    return result;
}

static void hold(void)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &stdin_event};
    /* a file (or /dev/null) cannot be waited for, and is at its end */
    stdin_closed = epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &e) != 0;
    while (!stdin_closed && failure[0] == 0)
        turn(100);
}

/* A server that is told of the end has nothing to complain about. */
static void say_goodbye(void)
{
    static const uint8_t normal[2] = {1000 >> 8, 1000 & 255};
    for (uint32_t i = 0; i < opt.connections; i++)
        if (conns[i].state == OPEN && !conns[i].stalled)
            write_small_frame(&conns[i], OP_CLOSE, normal, sizeof normal);
}
