-- What `oncesign recover` needs when etcd is lost: a second copy of the sealed private keys (ciphertext only), a way to
-- be sure that no signer is at work, and one to refuse for good what was assigned before.

CREATE TABLE kept_keys (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id    bigint NOT NULL,
    address     bytea NOT NULL CHECK (octet_length(address) = 20),
    sealed      bytea NOT NULL,
    start_nonce numeric(20, 0) NOT NULL CHECK (start_nonce >= 0),
    kept_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (chain_id, address, sealed)
);
COMMENT ON COLUMN kept_keys.sealed IS 'AES-256-GCM ciphertext, as in etcd; the key-encryption key is elsewhere';
COMMENT ON COLUMN kept_keys.start_nonce IS 'the next nonce of the key as long as key_watermarks has none';
CREATE TRIGGER kept_keys_immutable BEFORE UPDATE OR DELETE ON kept_keys
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER kept_keys_kept BEFORE TRUNCATE ON kept_keys
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

-- Each recovery begins a generation. A fence is generation * 2^40 + etcd's create_revision of the leader record, so that
-- it grows even when etcd's revisions begin anew, and an assignment tells whether it is older than a recovery.
CREATE TABLE recoveries (
    generation bigint PRIMARY KEY CHECK (generation > 0),
    node       text NOT NULL,
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TRIGGER recoveries_immutable BEFORE UPDATE OR DELETE ON recoveries
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER recoveries_kept BEFORE TRUNCATE ON recoveries
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

-- Whoever may write to the ledger holds this lock, shared, for as long as its connection is open; a recovery holds it
-- alone. Refuses with OS002 while a recovery is under way. A client that vanished is noticed within 12 s.
CREATE FUNCTION oncesign_enlist_v1() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('oncesign.enlisted', true) = 'yes' THEN
        RETURN;
    END IF;
    IF NOT pg_try_advisory_lock_shared(hashtextextended('oncesign signers', 0)) THEN
        RAISE EXCEPTION 'a recovery is under way: nothing may be signed' USING ERRCODE = 'OS002';
    END IF;
    PERFORM set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false),
            set_config('tcp_keepalives_count', '3', false), set_config('oncesign.enlisted', 'yes', false);
END $$;

CREATE FUNCTION oncesign_bar_signers_v1() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_try_advisory_lock(hashtextextended('oncesign signers', 0));
END $$;

-- As 0006; the connection is enlisted first, whoever it belongs to, and nothing new is written for an assignment that
-- is older than the last recovery. What was written before it stays as good as it was.
CREATE OR REPLACE FUNCTION oncesign_ledger_record_v1(
    p_source text, p_shard smallint, p_seq bigint, p_digest bytea, p_chain_id bigint, p_sender bytea,
    p_first_nonce numeric, p_count integer, p_fence bigint, p_worker text
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    known signing_ledger;
    written boolean;
    watermark numeric;
BEGIN
    PERFORM oncesign_enlist_v1();

    INSERT INTO signing_ledger (source, shard, seq, digest, chain_id, sender, first_nonce, count, fence, worker)
    VALUES (p_source, p_shard, p_seq, p_digest, p_chain_id, p_sender, p_first_nonce, p_count, p_fence, p_worker)
    ON CONFLICT DO NOTHING;

    written := FOUND;
    IF NOT written THEN
        SELECT * INTO known FROM signing_ledger WHERE source = p_source AND shard = p_shard AND seq = p_seq;
        IF (known.digest, known.chain_id, known.first_nonce, known.count, known.fence)
               = (p_digest, p_chain_id, p_first_nonce, p_count, p_fence)
           AND known.sender IS NOT DISTINCT FROM p_sender THEN
            RETURN 'repeated';
        END IF;
    END IF;

    IF p_fence >> 40 < (SELECT coalesce(max(generation), 0) FROM recoveries) THEN
        RAISE EXCEPTION 'the assignment is older than the last recovery' USING ERRCODE = 'OS002';
    END IF;

    IF NOT written THEN
        IF known.seq IS NULL THEN
            RAISE EXCEPTION 'another batch has nonce % of the sender', p_first_nonce USING ERRCODE = 'OS001';
        END IF;
        RAISE EXCEPTION 'the batch was recorded with another digest, sender, nonce or fence' USING ERRCODE = 'OS001';
    END IF;

    IF p_sender IS NULL THEN
        RETURN 'written';
    END IF;

    INSERT INTO key_watermarks (chain_id, sender, next_nonce)
    VALUES (p_chain_id, p_sender, p_first_nonce + p_count)
    ON CONFLICT (chain_id, sender) DO UPDATE SET next_nonce = EXCLUDED.next_nonce
        WHERE key_watermarks.next_nonce = p_first_nonce;
    IF NOT FOUND THEN
        SELECT next_nonce INTO watermark FROM key_watermarks WHERE chain_id = p_chain_id AND sender = p_sender;
        RAISE EXCEPTION 'the sender has signed up to nonce %, the batch would start at %', watermark - 1, p_first_nonce
            USING ERRCODE = 'OS001';
    END IF;
    RETURN 'written';
END $$;
