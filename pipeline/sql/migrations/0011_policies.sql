-- Every version of each source's policy, for ever: batches name the one that was applied to them.

CREATE TABLE policies (
    source  text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    text    text NOT NULL,
    set_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, version)
);
CREATE TRIGGER policies_immutable BEFORE UPDATE OR DELETE ON policies
    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1();
CREATE TRIGGER policies_kept BEFORE TRUNCATE ON policies
    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1();

-- The version of a text: the last one if that is it, else a new one.
CREATE FUNCTION oncesign_policy_version_v1(p_source text, p_text text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    last policies;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('oncesign policies ' || p_source, 0));
    SELECT * INTO last FROM policies WHERE source = p_source ORDER BY version DESC LIMIT 1;
    IF last.text = p_text THEN
        RETURN last.version;
    END IF;
    INSERT INTO policies (source, version, text) VALUES (p_source, coalesce(last.version, 0) + 1, p_text);
    RETURN coalesce(last.version, 0) + 1;
END $$;
