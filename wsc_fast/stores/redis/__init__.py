"""The offline store in Redis or Valkey, for hubs that share one, or have one beside them already.

Rules:

    1. All writes go through one queue and one task, in batches: a batch is one script, run by the
       server as a whole, and one round trip. So the order of the calls is the order in the store,
       and thousands of appends cost as many round trips as the server takes batches.
    2. A batch carries a number, and the server keeps the reply to the last one for a while. Where
       the connection is lost and the outcome unknown, the same batch is sent again: if it had been
       done, it is not done again, and the reply comes from what was kept. A batch that was given up
       and reaches the server after a later one is refused by its number. If it was done, the next
       batch first returns its reply, so that `expire` can report the messages it removed.
    3. Positions are of the server's clock, in microseconds, pushed up to be strictly increasing.
       So they grow on even when the server lost its newest data, and the time at which a message
       was stored is its position.
    4. A script is not always a whole. A server that was killed while it wrote its log may come
       back with the first part of a script's writes (Redis 7, and Valkey before its pull request
       4342, after a second restart), of a batch that nobody was told of. So each script writes in
       an order in which any first part is harmless: a message's user is in `recent` before its id
       is in the order, the id is in the order before it has data, and a user whose messages are in
       an order is in `oldest`, at no later position than the first of them. An id in the order
       without data is passed over, and goes as a message would.
    5. A read waits for the writes of its user that were called before. Reads share batches, too: a
       batch is one script that writes nothing. A message too large for a reply that others share
       is read in a batch of its own. A caller waits for a future and never for the server: a caller
       that is cancelled leaves at once, and breaks no connection.
    6. A batch, and a reply, is bounded in messages and in bytes. The bound in bytes follows the
       line: it shrinks where an answer takes long, and grows where it does not.
    7. A message that is too old is read first, and then removed if it is still there at that
       position. So its content is known here before the server lets go of it.

Keys, below the prefix; an id stands in them as it is, in UTF-8:

    messages:USER   hash: message id -> data
    order:USER      sorted set: message id, by position
    oldest          sorted set: user id, by the position of its oldest message; for `expire`
    recent          sorted set: 8 bytes that name an opened store, then a user id, by the position
                    of what that store appended last for that user; for `appended`
    position        a position that none is beyond
    reply:RANDOM    number and reply of the last batch of one opened store, for an hour

The first three and `position` live for `ttl` seconds after the last append to them.
"""
