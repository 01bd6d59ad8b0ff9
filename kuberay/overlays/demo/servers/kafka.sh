# The first start formats the storage.
set -eu
java="$(python -c 'from pipeline.local.kafka import java; print(java())')"
kafka() { "$java" -Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile=/servers/log4j2.yaml -cp '/opt/kafka/*' "$@"; }
if ! [ -e /data/kafka/meta.properties ]; then
  kafka kafka.tools.StorageTool format --standalone -t "$(python -c 'from pipeline.local.kafka import new_cluster_id; print(new_cluster_id())')" -c /servers/kafka.properties
fi
exec "$java" -Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile=/servers/log4j2.yaml -cp '/opt/kafka/*' kafka.Kafka /servers/kafka.properties
