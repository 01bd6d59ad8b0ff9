-- More sources than one: `SELECT oncesign_create_source_v1('payroll', 16)` makes a table that can be named in
-- ONCESIGN_SOURCES; `oncesign_guard_v1` puts the same guards on a table of the same shape that was made by hand.

CREATE FUNCTION oncesign_guard_v1(p_table regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER source_immutable BEFORE UPDATE OR DELETE ON %s
                    FOR EACH ROW EXECUTE FUNCTION oncesign_refuse_change_v1()', p_table);
    EXECUTE format('CREATE TRIGGER source_kept BEFORE TRUNCATE ON %s
                    FOR EACH STATEMENT EXECUTE FUNCTION oncesign_refuse_change_v1()', p_table);
    EXECUTE format('CREATE TRIGGER source_stamp BEFORE INSERT ON %s
                    FOR EACH ROW WHEN (NEW.created_xid IS DISTINCT FROM pg_current_xact_id())
                    EXECUTE FUNCTION oncesign_stamp_v1()', p_table);
END $$;

CREATE FUNCTION oncesign_create_source_v1(p_name text, p_shards integer) RETURNS regclass LANGUAGE plpgsql AS $$
BEGIN
    IF p_shards NOT BETWEEN 1 AND 64 THEN
        RAISE EXCEPTION 'a source has 1 to 64 shards, not %', p_shards USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE transactions INCLUDING ALL EXCLUDING GENERATED EXCLUDING INDEXES)', p_name);
    EXECUTE format('ALTER TABLE %I DROP COLUMN shard, ADD PRIMARY KEY (id)', p_name);
    EXECUTE format('ALTER TABLE %I ADD COLUMN shard smallint NOT NULL GENERATED ALWAYS AS (id %% %s) STORED',
                   p_name, p_shards);
    EXECUTE format('CREATE INDEX ON %I (shard, created_xid, id)', p_name);
    PERFORM oncesign_guard_v1(format('%I', p_name)::regclass);
    RETURN format('%I', p_name)::regclass;
END $$;
