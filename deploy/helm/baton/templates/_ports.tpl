{{/* Written by `python -m deploy.helm_chart` from deploy/taken_ports.py; change it there. */}}
{{- define "baton.takenPorts" -}}
- {"port": 8080, "holder": "Ray's metrics in every pod (KubeRay's --metrics-export-port)", "head": false}
- {"port": 52365, "holder": "Ray's agent in every pod", "head": false}
- {"port": 8404, "holder": "HAProxy's statistics in every pod", "head": false}
- {"port": 9101, "holder": "HAProxy's metrics in every pod", "head": false}
- {"port": 6379, "holder": "Ray's GCS in the head's pod", "head": true}
- {"port": 8265, "holder": "Ray's dashboard in the head's pod", "head": true}
- {"port": 10001, "holder": "Ray's client server in the head's pod", "head": true}
- {"port": 44217, "holder": "Ray's autoscaler in the head's pod", "head": true}
- {"port": 44227, "holder": "Ray's dashboard in the head's pod", "head": true}
- {"port": 8500, "holder": "Serve's fallback proxy in the head's pod", "head": true}
- {"port": 9500, "holder": "Serve's fallback proxy in the head's pod", "head": true}
{{- end -}}
