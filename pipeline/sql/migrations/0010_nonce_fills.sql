-- Nonces that a key's pool never gave out, before the first one that it did: transfers of nothing to the sender itself
-- close them, so that what comes after can be mined. Under the same guard as everything that is signed.

CREATE TABLE nonce_fills (
    chain_id     bigint NOT NULL,
    sender       bytea NOT NULL CHECK (octet_length(sender) = 20),
    first_nonce  numeric(20, 0) NOT NULL CHECK (first_nonce >= 0),
    count        integer NOT NULL CHECK (count > 0),
    fee_cap      numeric(20, 0) NOT NULL CHECK (fee_cap >= 0),
    priority_fee numeric(20, 0) NOT NULL CHECK (priority_fee BETWEEN 0 AND fee_cap),
    filled_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain_id, sender, first_nonce)
);
COMMENT ON COLUMN nonce_fills.fee_cap IS 'wei per gas, as signed: a repeat takes these fees and gives the same bytes';
CREATE TRIGGER nonce_fills_immutable BEFORE UPDATE OR DELETE ON nonce_fills
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER nonce_fills_kept BEFORE TRUNCATE ON nonce_fills
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

-- Swears to fill nonces [p_first_nonce, p_first_nonce + p_count) of a sender; p_next_nonce is the first that the pool
-- may still give out. The row that is kept, which for a repeat is the earlier one. Refuses with OS001 what is, or could
-- be, given out. The watermark's row is locked meanwhile, so that no batch of the sender is sworn beside it.
CREATE FUNCTION oncesign_fill_record_v1(
    p_chain_id bigint, p_sender bytea, p_first_nonce numeric, p_count integer, p_fee_cap numeric, p_priority_fee numeric,
    p_next_nonce numeric
) RETURNS nonce_fills LANGUAGE plpgsql AS $$
DECLARE
    kept nonce_fills;
    lowest numeric;
BEGIN
    PERFORM oncesign_enlist_v1();

    INSERT INTO key_watermarks (chain_id, sender, next_nonce) VALUES (p_chain_id, p_sender, p_next_nonce)
    ON CONFLICT DO NOTHING;
    PERFORM FROM key_watermarks WHERE (chain_id, sender) = (p_chain_id, p_sender) FOR UPDATE;

    SELECT * INTO kept FROM nonce_fills
    WHERE (chain_id, sender, first_nonce, count) = (p_chain_id, p_sender, p_first_nonce, p_count);
    IF FOUND THEN
        RETURN kept;
    END IF;

    SELECT coalesce(min(first_nonce), p_next_nonce) INTO lowest FROM signing_ledger
    WHERE (chain_id, sender) = (p_chain_id, p_sender) AND count > 0;
    IF p_first_nonce + p_count > lowest THEN
        RAISE EXCEPTION 'the pool gives out nonces of the sender from % on', lowest USING ERRCODE = 'OS001';
    END IF;
    IF EXISTS (
        SELECT FROM nonce_fills f WHERE (f.chain_id, f.sender) = (p_chain_id, p_sender)
            AND f.first_nonce < p_first_nonce + p_count AND p_first_nonce < f.first_nonce + f.count
    ) THEN
        RAISE EXCEPTION 'some of the nonces are filled already' USING ERRCODE = 'OS001';
    END IF;

    INSERT INTO nonce_fills (chain_id, sender, first_nonce, count, fee_cap, priority_fee)
    VALUES (p_chain_id, p_sender, p_first_nonce, p_count, p_fee_cap, p_priority_fee) RETURNING * INTO kept;
    RETURN kept;
END $$;
