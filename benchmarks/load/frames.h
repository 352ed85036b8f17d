/* The incoming side, frames: whole ones where they lie, split ones byte by byte. */

static void protocol_error(struct conn *c, const char *what)
{
    protocol_errors++;
    connection_lost(c, what);
}

static void on_control(struct conn *c, uint8_t opcode, const uint8_t *payload, size_t size)
{
    if (opcode == OP_PING) {
        pings++;
        write_small_frame(c, OP_PONG, payload, size);
    } else if (opcode == OP_CLOSE) {
        if (size >= 2)
            close_code = payload[0] << 8 | payload[1];
        write_small_frame(c, OP_CLOSE, payload, size < 2 ? 0 : 2);
        connection_lost(c, "the server sent a close frame");
    } else if (opcode != OP_PONG) {
        protocol_error(c, "unknown opcode");
    }
}

static size_t header_length(uint8_t second)
{
    return (second & 127) < 126 ? 2 : (second & 127) == 126 ? 4 : 10;
}

static uint64_t payload_length(const uint8_t *header)
{
    if (header[1] < 126)
        return header[1];
    uint64_t size = 0;
    for (size_t i = 2; i < header_length(header[1]); i++)
        size = size << 8 | header[i];
    return size;
}

/* RFC 6455 5.2, 5.4, 5.5: what a server may send. */
static const char *header_fault(const struct partial *p, bool packs)
{
    uint8_t opcode = p->header[0] & 15;
    if ((p->header[0] & 0x70) && !(packs && (p->header[0] & 0x70) == RSV1 && opcode < OP_CLOSE))
        return "reserved bits";
    if ((p->header[0] & 0xc0) == RSV1)
        return "a compressed message in fragments, which loadgen cannot read";
    if (p->header[1] & 0x80)
        return "a masked frame from the server";
    if (opcode >= OP_CLOSE)
        return (p->header[0] & 0x80) && p->frame_left <= 125 ? NULL : "bad control frame";
    if (opcode > OP_BINARY)
        return "unknown opcode";
    if (p->in_message != (opcode == OP_CONTINUATION))
        return "continuation out of place";
    return NULL;
}

static void take_piece(struct conn *c, struct partial *p, const uint8_t *data, size_t size)
{
    if (p->header[0] & RSV1) {
        append(&p->packed, data, size);
        return;
    }
    size_t before = c->next != NULL ? answer.before.size : 0, head = c->next != NULL ? head_size : HEAD_SIZE;
    for (; size > 0 && p->offset < before + head; size--, data++, p->offset++) {
        if (p->offset >= before)
            p->head[p->offset - before] = *data;
        else if (*data != answer.before.data[p->offset])
            p->intact = false;
    }
    if (size > 0) {
        if (p->offset + size > answer_size || memcmp(data, answer_rest + p->offset - before - head, size) != 0)
            p->intact = false;
        p->offset += size;
    }
}

static void on_packed(struct conn *c, const uint8_t *data, size_t size);

static void finish_message(struct conn *c, struct partial *p)
{
    p->in_message = false;
    if (p->header[0] & RSV1) {
        on_packed(c, p->packed.data, p->packed.size);
        p->packed.size = 0;
    } else if (c->next != NULL) {
        deliver(c, p->head, p->intact && p->offset == answer_size);
    } else {
        on_message(c, p->head, p->offset < HEAD_SIZE ? p->offset : HEAD_SIZE); /* an answer, or its beginning */
    }
}

/* Takes the rest of a split frame (and everything up to the end of a fragmented message) from data; returns
 * where it stopped. c->split says whether it needs more. */
static const uint8_t *feed_slowly(struct conn *c, const uint8_t *data, const uint8_t *end)
{
    struct partial *p = c->partial;
    if (p == NULL)
        p = c->partial = allocate(1, sizeof *p);
    c->split = true;
    while (data < end) {
        if (!p->in_payload) {
            p->header[p->header_size++] = *data++;
            if (p->header_size < 2 || p->header_size < header_length(p->header[1]))
                continue;
            p->frame_left = payload_length(p->header);
            const char *fault = header_fault(p, c->packs);
            if (fault != NULL) {
                protocol_error(c, fault);
                return end;
            }
            p->in_payload = true;
            p->control_size = 0;
            uint8_t opcode = p->header[0] & 15;
            if (opcode == OP_TEXT || opcode == OP_BINARY) {
                p->in_message = true;
                p->offset = 0;
                p->intact = c->next == NULL || opcode == opt.opcode;
                memset(p->head, 0, sizeof p->head);
            }
        }
        bool is_control = (p->header[0] & 15) >= OP_CLOSE;
        size_t size = (size_t)(end - data) < p->frame_left ? (size_t)(end - data) : (size_t)p->frame_left;
        if (is_control) {
            memcpy(p->control + p->control_size, data, size);
            p->control_size += (uint8_t)size;
        } else {
            take_piece(c, p, data, size);
        }
        data += size;
        p->frame_left -= size;
        if (p->frame_left > 0)
            return data;
        p->in_payload = false;
        p->header_size = 0;
        if (is_control)
            on_control(c, p->header[0] & 15, p->control, p->control_size);
        else if (p->header[0] & 0x80)
            finish_message(c, p);
        if (c->state == DEAD)
            return end;
        if (!p->in_message) {
            c->split = false;
            return data;
        }
    }
    return data;
}

static void feed(struct conn *c, const uint8_t *data, size_t size)
{
    const uint8_t *end = data + size;
    while (data < end && c->state != DEAD) {
        if (!c->split && end - data >= 10 && (data[0] & ~(c->packs ? RSV1 : 0)) == data_byte && data[1] < 128) {
            size_t header = header_length(data[1]);
            uint64_t length = payload_length(data);
            if (length <= (uint64_t)(end - data) - header) {
                if (likely(!(data[0] & RSV1)))
                    on_message(c, data + header, length);
                else
                    on_packed(c, data + header, length);
                data += header + length;
                continue;
            }
        }
        data = feed_slowly(c, data, end);
    }
}
