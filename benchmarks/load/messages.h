/* The incoming side, messages: each is compared with the one that is due. */

static inline void release_slot(struct stream *s, struct slot *slot)
{
    if (--slot->remaining == 0) {
        s->incomplete--;
        outstanding--;
        if (!s->ready) {
            s->ready = true;
            ready[ready_count++] = s;
        }
    }
}

static inline void accept_message(struct stream *s, uint64_t *next)
{
    struct slot *slot = &s->ring[(*next)++ & s->mask];
    if (slot->stamp >= measure_from)
        record(&latencies, now - slot->stamp);
    delivered_total++;
    release_slot(s, slot);
}

static bool parse_hex(const uint8_t *from, uint64_t *value)
{
    *value = 0;
    for (int i = 0; i < SEQ_DIGITS; i++) {
        uint8_t d = from[i];
        if (d >= '0' && d <= '9')
            *value = *value << 4 | (uint64_t)(d - '0');
        else if (d >= 'a' && d <= 'f')
            *value = *value << 4 | (uint64_t)(d - 'a' + 10);
        else
            return false;
    }
    return true;
}

static void skip_message(struct conn *c, struct stream *s, uint64_t *next)
{
    if (missing_count < MAX_MISSING) {
        missing[missing_count].conn = c->index;
        missing[missing_count].stream = s;
        missing[missing_count++].sequence = *next;
    }
    lost++;
    release_slot(s, &s->ring[(*next)++ & s->mask]);
}

static bool was_missing(const struct conn *c, const struct stream *s, uint64_t sequence)
{
    for (uint32_t i = 0; i < missing_count; i++) {
        if (missing[i].conn == c->index && missing[i].stream == s && missing[i].sequence == sequence) {
            missing[i] = missing[--missing_count];
            return true;
        }
    }
    return false;
}

/* A message that is not, byte for byte, the one due on a connection with a single stream: says of which stream it
 * is and what is wrong with it, if anything is, and keeps the window moving. */
static void deliver_odd(struct conn *c, const uint8_t *head, bool intact)
{
    uint8_t digits[SEQ_DIGITS];
    uint64_t number;
    struct stream *s;
    int64_t cursor;

    last_progress = now;
    memcpy(digits, head, SEQ_DIGITS);
    digits[0] = '0';
    if (!parse_hex(digits, &number) || (s = named(head, number)) == NULL ||
        (number ^= s->tag) >= s->published || (cursor = cursor_of(c, s)) < 0) {
        corrupt++;
        return;
    }
    uint64_t *next = &c->next[cursor];
    if (!intact || (number == *next && memcmp(head, s->ring[number & s->mask].head, head_size) != 0))
        corrupt++;
    if (number >= *next) {
        while (*next < number)
            skip_message(c, s, next);
        accept_message(s, next);
    } else if (was_missing(c, s, number)) {
        lost--;
        reordered++;
        delivered_total++;
    } else {
        duplicated++;
    }
}

static inline void deliver(struct conn *c, const uint8_t *head, bool intact)
{
    struct stream *s = c->stream;
    if (likely(s != NULL && intact && c->only < s->published &&
               memcmp(head, s->ring[c->only & s->mask].head, head_size) == 0))
        accept_message(s, &c->only);
    else
        deliver_odd(c, head, intact);
}

static void connection_opened(struct conn *c);

static void join(struct conn *c);

static bool starts_with(const uint8_t *payload, uint64_t size, const char *text)
{
    return size >= strlen(text) && memcmp(payload, text, strlen(text)) == 0;
}

static bool is_joined(const uint8_t *payload, uint64_t size)
{
    static const char joined[] = "joined";
    size_t before = answer.before.size, text = sizeof joined - 1;
    return size == before + text + answer.after.size && memcmp(payload, answer.before.data, before) == 0 &&
           memcmp(payload + before, joined, text) == 0;
}

static void on_message(struct conn *c, const uint8_t *payload, uint64_t size)
{
    if (likely(c->next != NULL)) {
        const uint8_t *head = payload + answer.before.size;
        uint8_t cut_short[HEAD_SIZE] = {0};
        bool intact = size == answer_size && memcmp(payload, answer.before.data, answer.before.size) == 0 &&
                      memcmp(head + head_size, answer_rest, answer_size - answer.before.size - head_size) == 0;
        if (size < answer.before.size + HEAD_SIZE) {
            if (size > answer.before.size)
                memcpy(cut_short, head, size - answer.before.size);
            head = cut_short;
        }
        deliver(c, head, intact);
    } else if (c->state == GREETING && starts_with(payload, size, opt.ready)) {
        join(c);
    } else if (c->state == JOINING && is_joined(payload, size)) {
        if (--c->joins == 0)
            connection_opened(c);
    } else {
        messages_ignored++;
    }
}
