"""The console: a page on which operators watch a hub, and act on its clients, users and rooms.

Rules:

    1. Nothing is answered to a request that `authenticate` has not let in, the page's own files
       included. An address that is refused too often is not asked again for a while.
    2. Nothing of a peer (names of rooms and users, messages, log texts) is ever a part of a page:
       it goes as JSON to a script, which makes text nodes of it.
    3. An action is a POST with a header that no other site's page can send. It leaves a log line
       with the name of the operator, on the hub where it was asked for and on the hub that did it.
       An operator who may not act is refused by the hub; that his page has no buttons protects
       nothing.
    4. Work on all clients or rooms is done in turns of the loop, once for all who look.
    5. All that is kept or sent is bounded: samples, log lines, lists, texts.
    6. Each view is made by the hub that it is about; any hub on the bus fetches it from there.

The page asks for JSON every two seconds. It does so rather than hold a WebSocket, for three
reasons: each request is authenticated anew; an operator is no client of the hub, in whose counts
and limits he would stand; and routes of a hub are served beside uvicorn too.

    facade.py      ConsoleFace, a base of Hub: enable_console
    needs.py       what the room needs of a hub
    access.py      who is let in: `authenticate`, failures of an address, the headers of requests
    routes.py      the requests: from each to its view or action, and the headers of answers
    questions.py   questions of the page, and of hubs to each other, as types
    cluster.py     views and actions of this hub, of another one, and of all
    views.py       the views of this hub
    actions.py     disconnect and send, with their log lines
    top_lists.py   the largest rooms, users and outboxes, found in turns
    samples.py     the figures of the charts, noted every two seconds
    log_ring.py    the newest lines of the hub's log
    page.html, console.css, icon.svg   the page
    console.js     fills it; view.js is the dialog about one client, user or room; charts.js,
                   elements.js, formats.js and ask.js are what both use
"""
