# One member of three; POD is its name.
exec etcd --name "$POD" --data-dir /data/etcd \
  --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls "http://$POD.etcd.demo.svc.cluster.local:2379" \
  --listen-peer-urls http://0.0.0.0:2380 --initial-advertise-peer-urls "http://$POD.etcd.demo.svc.cluster.local:2380" \
  --initial-cluster "etcd-0=http://etcd-0.etcd.demo.svc.cluster.local:2380,etcd-1=http://etcd-1.etcd.demo.svc.cluster.local:2380,etcd-2=http://etcd-2.etcd.demo.svc.cluster.local:2380" \
  --auto-compaction-mode revision --auto-compaction-retention 10000 --log-level warn
