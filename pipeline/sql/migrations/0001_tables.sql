-- The tables of a deployment. `transactions` is the first source; another source is another table of the same shape,
-- or a view with the same columns.

CREATE TABLE transactions (
    id                       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY CHECK (id > 0),
    type                     smallint NOT NULL DEFAULT 2,
    chain_id                 bigint NOT NULL,
    "to"                     bytea CHECK (octet_length("to") = 20),
    value                    numeric(78, 0) NOT NULL DEFAULT 0 CHECK (value >= 0),
    gas_limit                bigint NOT NULL,
    max_fee_per_gas          numeric(78, 0) NOT NULL CHECK (max_fee_per_gas >= 0),
    max_priority_fee_per_gas numeric(78, 0) CHECK (max_priority_fee_per_gas >= 0),
    data                     bytea NOT NULL DEFAULT '',
    access_list              jsonb,
    created_at               timestamptz NOT NULL DEFAULT now(),
    created_xid              xid8 NOT NULL DEFAULT pg_current_xact_id(),
    shard                    smallint NOT NULL GENERATED ALWAYS AS (id % 8) STORED
);
COMMENT ON COLUMN transactions."to" IS 'recipient; null creates a contract';
COMMENT ON COLUMN transactions.value IS 'wei';
COMMENT ON COLUMN transactions.max_fee_per_gas IS 'wei per gas; the gas price of types 0 and 1';
COMMENT ON COLUMN transactions.max_priority_fee_per_gas IS 'wei per gas; null for types 0 and 1';
COMMENT ON COLUMN transactions.access_list IS '[{"address": "0x…", "storageKeys": ["0x…"]}]';
COMMENT ON COLUMN transactions.created_xid IS 'the inserting transaction: readers go by (created_xid, id)';

-- Readers walk one shard in this order; the index is all they touch beside the rows themselves.
CREATE INDEX transactions_cursor ON transactions (shard, created_xid, id);

-- A row that a reader may have passed must not change, come back or disappear: signed + rejected = committed rows.
CREATE FUNCTION oncesign_refuse_change_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are immutable: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Insert a new row instead. To archive, detach the table after every row has an outcome.';
END $$;
CREATE TRIGGER transactions_immutable BEFORE UPDATE OR DELETE ON transactions
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER transactions_kept BEFORE TRUNCATE ON transactions
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

-- A client cannot place a row behind a reader's cursor by naming an older transaction.
CREATE FUNCTION oncesign_stamp_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.created_xid := pg_current_xact_id();
    RETURN NEW;
END $$;
CREATE TRIGGER transactions_stamp BEFORE INSERT ON transactions
    FOR EACH ROW WHEN (NEW.created_xid IS DISTINCT FROM pg_current_xact_id())
    EXECUTE FUNCTION oncesign_stamp_v1();

-- What signers swore to sign, before they signed.
CREATE TABLE signing_ledger (
    source      text NOT NULL,
    shard       smallint NOT NULL,
    seq         bigint NOT NULL CHECK (seq > 0),
    digest      bytea NOT NULL CHECK (octet_length(digest) = 32),
    chain_id    bigint NOT NULL,
    sender      bytea CHECK (octet_length(sender) = 20),
    first_nonce numeric(20, 0) NOT NULL CHECK (first_nonce >= 0),
    count       integer NOT NULL CHECK (count >= 0),
    fence       bigint NOT NULL,
    worker      text NOT NULL,
    written_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, shard, seq),
    CHECK ((sender IS NULL) = (count = 0)),
    UNIQUE (chain_id, sender, first_nonce)
);
COMMENT ON COLUMN signing_ledger.sender IS 'null for a batch without a signable row';
CREATE TRIGGER signing_ledger_immutable BEFORE UPDATE OR DELETE ON signing_ledger
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER signing_ledger_kept BEFORE TRUNCATE ON signing_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

-- The next nonce that may be signed, per chain and sender.
CREATE TABLE key_watermarks (
    chain_id   bigint NOT NULL,
    sender     bytea NOT NULL CHECK (octet_length(sender) = 20),
    next_nonce numeric(20, 0) NOT NULL CHECK (next_nonce >= 0),
    PRIMARY KEY (chain_id, sender)
);

-- What became of each source row. The two keys make the database itself prove once-only.
CREATE TABLE outcomes (
    source       text NOT NULL,
    tx_id        bigint NOT NULL,
    status       text NOT NULL CHECK (status IN ('signed', 'rejected')),
    chain_id     bigint NOT NULL,
    shard        smallint NOT NULL,
    seq          bigint NOT NULL,
    sender       bytea CHECK (octet_length(sender) = 20),
    nonce        numeric(20, 0),
    hash         bytea CHECK (octet_length(hash) = 32),
    reason       text NOT NULL DEFAULT '',
    detail       text NOT NULL DEFAULT '',
    topic        text NOT NULL,
    partition    integer NOT NULL,
    kafka_offset bigint NOT NULL,
    decided_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, tx_id),
    UNIQUE (chain_id, sender, nonce),
    CHECK ((status = 'signed') = (sender IS NOT NULL AND nonce IS NOT NULL AND hash IS NOT NULL))
);

-- How far the verifier has come on each partition, moved in the transaction that writes the outcomes.
CREATE TABLE verifier_positions (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- What the verifier found wrong; kept until an operator deletes it.
CREATE TABLE violations (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     text NOT NULL,
    detail   text NOT NULL,
    source   text,
    shard    smallint,
    seq      bigint,
    tx_id    bigint,
    found_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (kind, detail, source, shard, seq, tx_id)
);
