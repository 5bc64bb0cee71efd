-- Format 1 of the embedded queue. Times are microseconds since 1970 (UTC).

-- One row for each message. Its contents stand apart, so that a change of state does not write them again.
--   lane   0 urgent, 1 normal
--   state  0 ready, 1 delayed until not_before, 2 in hands, 3 waits for its key
--   repeat 0 at least once, 1 at most once
--   claim  which handing-out it is in, with state 2
--   origin, token  whom to answer
CREATE TABLE messages (
    seq        INTEGER PRIMARY KEY,
    queue      TEXT    NOT NULL,
    lane       INTEGER NOT NULL,
    key        TEXT,
    state      INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    published  INTEGER NOT NULL,
    deadline   INTEGER,
    repeat     INTEGER NOT NULL,
    claim      INTEGER,
    origin     INTEGER,
    token      INTEGER,
    id         BLOB    NOT NULL
) STRICT;

CREATE INDEX messages_ready     ON messages (queue, lane, not_before, seq) WHERE state = 0;
CREATE INDEX messages_delayed   ON messages (not_before) WHERE state = 1;
CREATE INDEX messages_in_hands  ON messages (seq) WHERE state = 2;
CREATE INDEX messages_keys      ON messages (queue, key, state, lane, not_before, seq) WHERE key IS NOT NULL;
CREATE INDEX messages_deadlines ON messages (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX messages_once      ON messages (seq) WHERE repeat = 1;

CREATE TABLE contents (
    seq     INTEGER PRIMARY KEY,
    headers TEXT NOT NULL,
    body    BLOB NOT NULL
) STRICT;

-- How many messages wait in each lane: everything but those in hands. Kept by triggers, so that a publish need not
-- count and no statement can forget it.
CREATE TABLE lanes (
    queue   TEXT    NOT NULL,
    lane    INTEGER NOT NULL,
    waiting INTEGER NOT NULL,
    PRIMARY KEY (queue, lane)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER messages_in AFTER INSERT ON messages WHEN new.state <> 2 BEGIN
    INSERT INTO lanes VALUES (new.queue, new.lane, 1)
        ON CONFLICT (queue, lane) DO UPDATE SET waiting = waiting + 1;
END;
CREATE TRIGGER messages_out AFTER DELETE ON messages WHEN old.state <> 2 BEGIN
    UPDATE lanes SET waiting = waiting - 1 WHERE queue = old.queue AND lane = old.lane;
END;
CREATE TRIGGER messages_taken AFTER UPDATE OF state ON messages WHEN old.state <> 2 AND new.state = 2 BEGIN
    UPDATE lanes SET waiting = waiting - 1 WHERE queue = old.queue AND lane = old.lane;
END;
CREATE TRIGGER messages_back AFTER UPDATE OF state ON messages WHEN old.state = 2 AND new.state <> 2 BEGIN
    UPDATE lanes SET waiting = waiting + 1 WHERE queue = old.queue AND lane = old.lane;
END;

-- Replies to askers in other processes.
CREATE TABLE replies (
    origin   INTEGER NOT NULL,
    token    INTEGER NOT NULL,
    deadline INTEGER NOT NULL,
    body     BLOB    NOT NULL,
    PRIMARY KEY (origin, token)
) STRICT, WITHOUT ROWID;

CREATE INDEX replies_deadlines ON replies (deadline);

-- A number is never used again, so that a redrive knows what was there when it began.
CREATE TABLE dead (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    id        BLOB    NOT NULL,
    queue     TEXT    NOT NULL,
    lane      INTEGER NOT NULL,
    key       TEXT,
    repeat    INTEGER NOT NULL,
    cause     TEXT    NOT NULL,
    detail    TEXT    NOT NULL,
    attempts  INTEGER NOT NULL,
    published INTEGER NOT NULL,
    died      INTEGER NOT NULL,
    headers   TEXT    NOT NULL,
    body      BLOB    NOT NULL
) STRICT;

CREATE INDEX dead_times  ON dead (died, seq);
CREATE INDEX dead_queues ON dead (queue);

-- The version tells a watcher whether it knows the value already.
CREATE TABLE retained (
    name    TEXT    PRIMARY KEY,
    version INTEGER NOT NULL,
    value   BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- Which process consumed the file last: when it dies, nobody waits for the replies to its requests any more.
CREATE TABLE consumer (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    origin INTEGER NOT NULL
) STRICT;
