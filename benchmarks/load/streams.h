/* The streams of messages: who receives which, and room for what is on its way. */

/* Rooms deal their places out to the connections in turn: place p is connection p % connections. So each room
 * has room_size different members, and with more places than connections a connection is in several rooms. */
static uint64_t room_places(void)
{
    return (uint64_t)opt.rooms * opt.room_size;
}

/* The stream that a connection receives at a place of its `next`; NULL if it is none. */
static struct stream *stream_at(const struct conn *c, uint32_t cursor)
{
    enum kind kind = 0;
    while (cursor >= kinds[kind].cursors)
        cursor -= kinds[kind++].cursors;
    uint64_t number = kind == TO_ALL ? cursor : c->index;
    if (kind == TO_ROOM) {
        uint64_t place = (uint64_t)cursor * opt.connections + c->index;
        if (place >= room_places())
            return NULL;
        number = place / opt.room_size;
    }
    return &streams[kinds[kind].first + number];
}

/* The inverse: which place of `next` a stream has, or -1 if the connection does not receive it. */
static int64_t cursor_of(const struct conn *c, const struct stream *s)
{
    uint64_t number = s->tag >> SEQ_BITS, at = 0;
    for (enum kind kind = 0; kind < s->kind; kind++)
        at += kinds[kind].cursors;
    if (s->kind == TO_ALL)
        return (int64_t)(at + number);
    if (s->kind != TO_ROOM)
        return number == c->index ? (int64_t)at : -1;
    uint64_t first = number * opt.room_size;
    uint64_t member = (c->index + opt.connections - first % opt.connections) % opt.connections;
    return member < opt.room_size ? (int64_t)(at + (first + member) / opt.connections) : -1;
}

static struct conn *member(const struct stream *s, uint64_t number)
{
    uint64_t stream = s->tag >> SEQ_BITS;
    switch (s->kind) {
    case TO_ROOM: return &conns[(stream * opt.room_size + number % opt.room_size) % opt.connections];
    case TO_ONE: return &conns[(stream + opt.connections / 2 + number) % opt.connections]; /* a sender */
    case TO_ALL: return &conns[(stream + number) % (opt.connections - opt.stalled)];
    default: return &conns[stream];
    }
}

static void write_name(char *to, enum kind kind, uint64_t number)
{
    snprintf(to, NAME_SIZE + 1, "%c%05x", LETTERS[kind], (unsigned)(number & 0xfffff));
}

static struct stream *named(const uint8_t *head, uint64_t number)
{
    const char *letter = memchr(LETTERS, head[0], KINDS);
    if (letter == NULL || number >> SEQ_BITS >= kinds[letter - LETTERS].count)
        return NULL;
    return &streams[kinds[letter - LETTERS].first + (number >> SEQ_BITS)];
}

static void make_kind(enum kind kind, uint32_t count, uint32_t cursors)
{
    kinds[kind].first = stream_count;
    kinds[kind].count = count;
    kinds[kind].cursors = cursors;
    stream_count += count;
    cursor_count += cursors;
}

/* Before connecting: which streams there are, and who is in them. */
static void make_streams(void)
{
    bool mixed = opt.mode == MIXED;
    uint32_t per_client = (uint32_t)((room_places() + opt.connections - 1) / opt.connections);
    if (opt.mode == FANOUT || mixed)
        make_kind(TO_ALL, opt.publishers, opt.publishers);
    if (opt.mode == ROOM || mixed)
        make_kind(TO_ROOM, opt.rooms, per_client);
    if (opt.mode == DIRECT || mixed)
        make_kind(TO_ONE, opt.connections, 1);
    if (opt.mode == ECHO)
        make_kind(TO_SELF, opt.connections, 1);
    streams = allocate(stream_count, sizeof *streams);
    ready = allocate(stream_count, sizeof *ready);
    for (enum kind kind = 0; kind < KINDS; kind++) {
        for (uint32_t i = 0; i < kinds[kind].count; i++) {
            struct stream *s = &streams[kinds[kind].first + i];
            s->kind = kind;
            s->tag = (uint64_t)i << SEQ_BITS;
            s->publisher = member(s, 0);
            s->ready = true;
            ready[ready_count++] = s;
        }
    }
}

/* Once connected: room for the messages on their way, and for what each connection waits for. */
static void fill_streams(void)
{
    uint64_t size = opt.random ? 1 : opt.window, ring = 1;
    if (opt.rate > 0) { /* nothing bounds how far the server may fall behind, so keep every message */
        size = (uint64_t)(opt.rate * (opt.warmup + opt.seconds + 1)) + opt.messages + 1;
        if (stream_count > 1)
            size = size / stream_count * 4 + 64;
    }
    while (ring < size)
        ring *= 2;
    struct slot *slots = allocate(ring * stream_count, sizeof *slots);
    struct packed *packed = opt.deflate ? allocate(ring * stream_count, sizeof *packed) : NULL;
    for (uint32_t i = 0; i < stream_count; i++) {
        streams[i].ring = slots + i * ring;
        streams[i].packed = packed == NULL ? NULL : packed + i * ring;
        streams[i].mask = ring - 1;
    }
    uint64_t *cursors = cursor_count > 1 ? allocate((size_t)opt.connections * cursor_count, sizeof *cursors) : NULL;
    for (uint32_t i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        if (c->stalled)
            continue;
        c->next = cursors == NULL ? &c->only : cursors + (size_t)i * cursor_count;
        c->stream = cursors == NULL ? stream_at(c, 0) : NULL;
        for (uint32_t j = 0; j < cursor_count; j++) {
            struct stream *s = stream_at(c, j);
            if (s != NULL)
                s->receivers++;
        }
    }
}
