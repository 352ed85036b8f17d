/* The outgoing side: frames, what the kernel did not take, and when the next message is due. */

static void connection_lost(struct conn *c, const char *why);

static void append(struct unsent *u, const uint8_t *data, size_t size)
{
    if (u->start + u->size + size > u->capacity) {
        if (u->size > 0)
            memmove(u->data, u->data + u->start, u->size);
        u->start = 0;
        if (u->size + size > u->capacity) {
            u->capacity = (u->size + size) * 2;
            u->data = realloc(u->data, u->capacity);
            if (u->data == NULL)
                abort();
        }
    }
    memcpy(u->data + u->start + u->size, data, size);
    u->size += size;
}

static void keep_unsent(struct conn *c, const uint8_t *data, size_t size)
{
    if (c->unsent == NULL)
        c->unsent = allocate(1, sizeof *c->unsent);
    append(c->unsent, data, size);
}

/* Returns how much the kernel took; goes on until it says EAGAIN, as an edge-triggered socket needs. */
static size_t write_some(struct conn *c, const uint8_t *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = channel_send(c->fd, c->ssl, data + done, size - done);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            connection_lost(c, strerror(errno));
            break;
        }
    }
    return done;
}

static inline bool is_blocked(const struct conn *c)
{
    return c->unsent != NULL && c->unsent->size > 0;
}

static void write_all(struct conn *c, const uint8_t *data, size_t size)
{
    size_t done = is_blocked(c) ? 0 : write_some(c, data, size);
    if (done < size && c->state != DEAD)
        keep_unsent(c, data + done, size - done);
}

static void write_unsent(struct conn *c)
{
    struct unsent *u = c->unsent;
    size_t done = write_some(c, u->data + u->start, u->size);
    u->start += done;
    u->size -= done;
    if (u->size == 0)
        u->start = 0;
}

static size_t put_small_frame(uint8_t *to, uint8_t opcode, const uint8_t *payload, size_t size)
{
    size_t at = 0;
    to[at++] = 0x80 | opcode;
    if (size < 126) {
        to[at++] = (uint8_t)(0x80 | size);
    } else {
        to[at++] = 0x80 | 126;
        to[at++] = (uint8_t)(size >> 8);
        to[at++] = (uint8_t)size;
    }
    memcpy(to + at, MASK, 4);
    at += 4;
    for (size_t i = 0; i < size; i++)
        to[at + i] = payload[i] ^ MASK[i & 3];
    return at + size;
}

static void write_small_frame(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t size)
{
    uint8_t out[8 + 125];
    write_all(c, out, put_small_frame(out, opcode, payload, size));
}

/* The eight hex digits of a 32-bit number: nibbles are spread over the bytes of a word, then all turned into
 * digits at once. An echo at full speed writes millions of these numbers. */
static void put_hex32(uint8_t *to, uint32_t value)
{
    uint64_t x = value;
    x = (x & 0x00000000ffff0000ull) << 16 | (x & 0x000000000000ffffull);
    x = (x & 0x0000ff000000ff00ull) << 8 | (x & 0x000000ff000000ffull);
    x = (x & 0x00f000f000f000f0ull) << 4 | (x & 0x000f000f000f000full);
    uint64_t is_letter = (x + 0x0606060606060606ull) >> 4 & 0x0101010101010101ull;
    x = __builtin_bswap64(x + 0x3030303030303030ull + is_letter * ('a' - '0' - 10));
    memcpy(to, &x, 8);
}

static void put_hex(uint8_t *to, uint64_t value)
{
    put_hex32(to, (uint32_t)(value >> 32));
    put_hex32(to + 8, (uint32_t)value);
}

static void encode(struct stream *s, uint8_t *to, uint64_t stamp)
{
    struct slot *slot = &s->ring[s->published & s->mask];
    uint32_t masked[HEAD_SIZE / 4], mask;
    put_hex(slot->head, s->tag | s->published);
    slot->head[0] = (uint8_t)LETTERS[s->kind]; /* was 0: a number has five digits */
    put_hex(slot->head + SEQ_DIGITS, stamp);
    slot->stamp = stamp;
    slot->remaining = s->receivers;
    memcpy(to, frame, frame_size);
    memcpy(masked, slot->head, HEAD_SIZE);
    mask = mask_word;
    for (size_t i = 0; i < HEAD_SIZE / 4; i++)
        masked[i] ^= mask;
    memcpy(to + frame_head_at, masked, head_size);
    s->published++;
    s->incomplete++;
    published_total++;
    outstanding++;
}

static uint64_t due_at(uint64_t message)
{
    return began + (uint64_t)((double)message * (1e9 / opt.rate));
}

static bool may_publish(const struct stream *s)
{
    return s->publisher->state == OPEN && s->receivers > 0;
}

static bool is_due(uint64_t stamp, uint64_t moment)
{
    if (published_total >= publish_limit || stamp >= measure_to)
        publishing = false;
    return publishing && stamp <= moment;
}

/* Closed loop: publishes up to the window. Everything goes into one write, as from a client with much to say. */
static void pump(struct stream *s)
{
    while (publishing && may_publish(s) && !is_blocked(s->publisher) && s->incomplete < opt.window) {
        uint64_t moment = clock_now();
        size_t size = 0;
        while (s->incomplete < opt.window && (size + frame_size <= WRITE_SIZE || size == 0) && is_due(0, moment)) {
            encode(s, write_buffer + size, moment);
            size += frame_size;
        }
        last_progress = moment;
        write_all(s->publisher, write_buffer, size);
    }
}

/* Sends for the connections whose last message has arrived everywhere, and for those that were blocked. */
static void pump_ready(void)
{
    uint32_t count = ready_count, kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct stream *s = ready[i];
        pump(s);
        s->ready = is_blocked(s->publisher) && s->incomplete < opt.window;
        if (s->ready)
            ready[kept++] = s;
    }
    ready_count = kept;
}

static struct stream *some_stream(void)
{
    uint64_t dice = random_number() % 100;
    enum kind kind = 0;
    if (opt.mode != MIXED)
        return &streams[random_number() % stream_count];
    while (dice >= MIX[kind])
        dice -= MIX[kind++];
    return &streams[kinds[kind].first + random_number() % kinds[kind].count];
}

/* Only while nothing of it is on its way: two publishers are in no order. */
static void change_publisher(struct stream *s)
{
    struct conn *c = member(s, random_number());
    if (opt.random && s->incomplete == 0 && c->state == OPEN)
        s->publisher = c;
}

/* Closed loop with random publishers: as many messages as the window in all, one in each stream. */
static void pump_random(void)
{
    for (unsigned tries = 0; tries < 64 && outstanding < opt.window && is_due(0, 0); tries++) {
        struct stream *s = some_stream();
        if (s->incomplete > 0)
            continue;
        change_publisher(s);
        if (!may_publish(s))
            continue;
        last_progress = clock_now();
        encode(s, write_buffer, last_progress);
        write_all(s->publisher, write_buffer, frame_size);
    }
}

/* Open loop: publishes what is due by now, of all streams in turn (or at random). Nothing waits for an answer; a
 * socket that takes no more does not change when the next message is due. */
static void pump_scheduled(void)
{
    struct conn *writer = NULL;
    size_t size = 0;
    uint64_t moment = clock_now(), stamp;

    while (is_due(stamp = due_at(scheduled), moment)) {
        struct stream *s = opt.random ? some_stream() : &streams[scheduled % stream_count];
        if (s->incomplete > s->mask) /* the ring is full: the message waits here, and its latency grows */
            break;
        change_publisher(s);
        if (size > 0 && (s->publisher != writer || size + frame_size > WRITE_SIZE)) {
            write_all(writer, write_buffer, size);
            size = 0;
        }
        if (may_publish(s)) {
            writer = s->publisher;
            encode(s, write_buffer + size, stamp);
            size += frame_size;
            last_progress = moment;
        }
        scheduled++;
    }
    if (size > 0)
        write_all(writer, write_buffer, size);
    if (publishing) {
        uint64_t at = due_at(scheduled);
        struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / SECOND), .tv_nsec = (long)(at % SECOND)}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
    }
}
