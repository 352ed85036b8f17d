/* The incoming side, compressed messages. */

#ifdef WITH_ZLIB
static z_stream *new_inflater(void)
{
    z_stream *z = allocate(1, sizeof *z);
    if (inflateInit2(z, -15) != Z_OK)
        abort();
    return z;
}

/* Returns the size, or a negative number if that is no compressed message, or longer than ours are. */
static int64_t inflate_message(z_stream *z, const uint8_t *data, size_t size, uint8_t *to, size_t room)
{
    static uint8_t tail[] = {0, 0, 0xff, 0xff}; /* RFC 7692 7.2.2 */
    z->next_out = to;
    z->avail_out = (uInt)room;
    for (int part = 0; part < 2; part++) {
        z->next_in = part == 0 ? (Bytef *)(uintptr_t)data : tail;
        z->avail_in = part == 0 ? (uInt)size : sizeof tail;
        int result = inflate(z, Z_SYNC_FLUSH);
        if ((result != Z_OK && result != Z_BUF_ERROR) || z->avail_in > 0)
            return -1;
    }
    return (int64_t)room - z->avail_out;
}

/* A server that forgets its context after each message sends the same bytes to everybody. They are inflated and
 * looked at once; who gets exactly the same bytes later got the same message. */
static void on_packed(struct conn *c, const uint8_t *data, size_t size)
{
    static z_stream *shared;
    static uint8_t *inflated;
    bool forgetful = c->inflater == NULL;
    struct packed *known = NULL;
    uint64_t due = c->only;

    if (inflated == NULL) {
        inflated = allocate(answer_size + 64, 1);
        shared = new_inflater();
    }
    messages_packed++;
    if (forgetful && c->stream != NULL && due < c->stream->published) {
        known = &c->stream->packed[due & c->stream->mask];
        if (known->sequence == due + 1 && known->size == size && memcmp(known->data, data, size) == 0) {
            accept_message(c->stream, &c->only);
            return;
        }
    }
    if (forgetful)
        inflateReset(shared);
    int64_t n = inflate_message(forgetful ? shared : c->inflater, data, size, inflated, answer_size + 64);
    if (n < 0) {
        protocol_error(c, "a compressed message that cannot be inflated");
        return;
    }
    uint64_t faults = corrupt;
    on_message(c, inflated, (uint64_t)n);
    if (known != NULL && c->only == due + 1 && corrupt == faults) {
        if (known->capacity < size) {
            free(known->data);
            known->data = allocate(size, 1);
            known->capacity = size;
        }
        memcpy(known->data, data, size);
        known->size = size;
        known->sequence = due + 1; /* 0: nothing yet */
    }
}

static bool agree_to_pack(struct conn *c, const char *response)
{
    if (strstr(response, "permessage-deflate") == NULL)
        return false;
    c->packs = true;
    if (strstr(response, "server_no_context_takeover") == NULL)
        c->inflater = new_inflater();
    return true;
}
#else
static void on_packed(struct conn *c, const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    protocol_error(c, "a compressed message");
}

static bool agree_to_pack(struct conn *c, const char *response)
{
    (void)c, (void)response;
    return false;
}
#endif
