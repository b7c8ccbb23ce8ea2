{{/* The worker group of a part. Arguments: root, part. */}}
{{- define "baton.workerGroup" -}}
{{- $root := .root -}}
{{- $config := $root.Values.config -}}
{{- $values := get $root.Values .part -}}
{{- $part := include "baton.part" . | fromYaml -}}
groupName: {{ .part }}
replicas: {{ $part.minimum }}
minReplicas: {{ $part.minimum }}
maxReplicas: {{ $part.maximum }}
labels: {baton/part: {{ .part }}}
resources: {{- toYaml $part.resources | nindent 2 }}
rayStartParams:
  object-store-memory: "536870912"
template:
  metadata:
    labels:
      {{- include "baton.selector" $root | nindent 6 }}
      baton/part: {{ .part }}
    {{- with $values.annotations }}
    annotations: {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    serviceAccountName: {{ include "baton.name" $root }}-worker
    automountServiceAccountToken: false
    terminationGracePeriodSeconds: {{ $part.grace }}
    securityContext: {{- include "baton.podSecurity" $root | nindent 6 }}
    {{- with include "baton.pullSecrets" $root | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: ray-worker
        image: {{ include "baton.image" $root }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        securityContext: {{- include "baton.containerSecurity" (dict "rdma" $values.rdma.resource) | nindent 10 }}
        env: {{- include "baton.env" (dict "root" $root "env" $values.env) | nindent 10 }}
        ports:
          - {name: metrics, containerPort: 8080}
          - {name: serve, containerPort: {{ int $config.router.http_port }}}
          {{- if eq .part "router" }}
          - {name: grpc, containerPort: {{ int $config.router.grpc_port }}}
          {{- end }}
        resources:
          requests: {cpu: {{ toString (get $config .part).cpus_per_replica | quote }}, memory: {{ $values.memory }}}
          limits:
            memory: {{ $values.memory }}
            {{- if $part.gpus }}
            {{ $values.gpuResource }}: {{ $part.gpus }}
            {{- end }}
            {{- with $values.rdma.resource }}
            {{ . }}: {{ int $values.rdma.count }}
            {{- end }}
        livenessProbe: {{- include "baton.liveness" $root | nindent 10 }}
        readinessProbe: {{- include "baton.readiness" (dict "config" $config "part" .part) | nindent 10 }}
        lifecycle:
          preStop:
            exec:
              command: [python, -m, deploy.pod_stop, --within, {{ sub $part.grace 15 | quote }}, --http-port, {{ int $config.router.http_port | quote }}]
        volumeMounts: {{- include "baton.mounts" . | nindent 10 }}
    {{- with include "baton.placement" $values | trim }}{{ . | nindent 4 }}{{ end }}
    topologySpreadConstraints:
      {{- if kindIs "invalid" $values.topologySpreadConstraints }}
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels:
            {{- include "baton.selector" $root | nindent 12 }}
            baton/part: {{ .part }}
      {{- else }}
      {{- toYaml $values.topologySpreadConstraints | nindent 6 }}
      {{- end }}
    volumes: {{- include "baton.volumes" (dict "root" $root "part" .part "sharedMemory" $values.sharedMemory) | nindent 6 }}
{{- end -}}

{{/* A router is ready when it sees workers: only then may a new cluster's routers take calls over gRPC. A pool's pod takes
traffic through Serve's HTTP proxy alone. Kubernetes' own gRPC probe cannot speak TLS. Arguments: config, part. */}}
{{- define "baton.readiness" -}}
{{- if and (eq .part "router") (dig "tls" nil .config.security) -}}
httpGet: {path: /health, port: serve}
{{- else if eq .part "router" -}}
grpc: {port: {{ int .config.router.grpc_port }}}
{{- else -}}
httpGet: {path: /-/healthz, port: serve}
{{- end }}
initialDelaySeconds: 10
periodSeconds: 5
timeoutSeconds: 2
failureThreshold: 1
{{- end -}}
