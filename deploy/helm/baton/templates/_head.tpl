{{/* The head: Ray's GCS and dashboard, Serve's controller. It runs no replica and takes no traffic. */}}
{{- define "baton.head" -}}
{{- $values := .Values -}}
rayStartParams:
  num-cpus: "0"
  num-gpus: "0"
  dashboard-host: "0.0.0.0"
  object-store-memory: "536870912"
template:
  metadata:
    labels:
      {{- include "baton.selector" . | nindent 6 }}
      baton/part: head
  spec:
    serviceAccountName: {{ include "baton.name" . }}-head
    terminationGracePeriodSeconds: 60
    securityContext: {{- include "baton.podSecurity" . | nindent 6 }}
    {{- with include "baton.pullSecrets" . | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: ray-head
        image: {{ include "baton.image" . }}
        imagePullPolicy: {{ $values.image.pullPolicy }}
        securityContext: {{- include "baton.containerSecurity" (dict "rdma" false) | nindent 10 }}
        env: {{- include "baton.env" (dict "root" . "env" list) | nindent 10 }}
        ports:
          - {name: gcs-server, containerPort: 6379}
          - {name: dashboard, containerPort: 8265}
          - {name: metrics, containerPort: 8080}
          - {name: serve, containerPort: {{ int $values.config.router.http_port }}}
        resources:
          requests: {cpu: {{ $values.head.cpus | quote }}, memory: {{ $values.head.memory }}}
          limits: {memory: {{ $values.head.memory }}}
        livenessProbe: {{- include "baton.liveness" . | nindent 10 }}
        readinessProbe:
          httpGet: {path: /api/healthz, port: 52365}
          initialDelaySeconds: 10
          periodSeconds: 5
          timeoutSeconds: 5
          failureThreshold: 10
        volumeMounts: {{- include "baton.mounts" (dict "root" . "part" "head") | nindent 10 }}
    {{- with include "baton.placement" $values.head | trim }}{{ . | nindent 4 }}{{ end }}
    volumes: {{- include "baton.volumes" (dict "root" . "part" "head" "sharedMemory" "1Gi") | nindent 6 }}
{{- end -}}
