-- As 0002, and two signers may record the same batch at one moment: of the table's unique keys any may be the first to
-- notice, so that none of them alone may be named in ON CONFLICT.

CREATE OR REPLACE FUNCTION oncesign_ledger_record_v1(
    p_source text, p_shard smallint, p_seq bigint, p_digest bytea, p_chain_id bigint, p_sender bytea,
    p_first_nonce numeric, p_count integer, p_fence bigint, p_worker text
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    known signing_ledger;
    watermark numeric;
BEGIN
    INSERT INTO signing_ledger (source, shard, seq, digest, chain_id, sender, first_nonce, count, fence, worker)
    VALUES (p_source, p_shard, p_seq, p_digest, p_chain_id, p_sender, p_first_nonce, p_count, p_fence, p_worker)
    ON CONFLICT DO NOTHING;

    IF NOT FOUND THEN
        SELECT * INTO known FROM signing_ledger WHERE source = p_source AND shard = p_shard AND seq = p_seq;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'another batch has nonce % of the sender', p_first_nonce USING ERRCODE = 'OS001';
        END IF;
        IF (known.digest, known.chain_id, known.first_nonce, known.count, known.fence)
               = (p_digest, p_chain_id, p_first_nonce, p_count, p_fence)
           AND known.sender IS NOT DISTINCT FROM p_sender THEN
            RETURN 'repeated';
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
