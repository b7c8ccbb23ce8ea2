{{/* Pieces of the pods. */}}

{{/* Environment of every process of the cluster. HAProxy starts anew whenever a router comes or goes; its old process
and the connections of clients must live as long as the longest request. Arguments: root, env (more of it). */}}
{{- define "baton.env" -}}
{{- $values := .root.Values -}}
{{- $longest := add (int (ceil $values.config.router.request_deadline_s)) 30 | quote -}}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S, value: {{ $longest }}}
- {name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S, value: {{ $longest }}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- name: {{ $values.config.security.ticket_secret_env }}
  valueFrom:
    secretKeyRef:
      name: {{ $values.secrets.ticket.name | default (printf "%s-secrets" (include "baton.name" .root)) }}
      key: {{ $values.secrets.ticket.key }}
{{- with $values.config.store.password_env }}
- name: {{ . }}
  valueFrom:
    secretKeyRef: {name: {{ $values.secrets.redis.name }}, key: {{ $values.secrets.redis.key }}}
{{- end }}
{{- with $values.secrets.model }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- with .env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "baton.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Arguments: rdma, whether the pod registers memory with a network card. */}}
{{- define "baton.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  {{- if .rdma }}
  add: [IPC_LOCK]
  {{- end }}
{{- end -}}

{{/* Ray's own health: the raylet, and on the head the GCS. */}}
{{- define "baton.liveness" -}}
httpGet: {path: /api/healthz, port: 52365}
initialDelaySeconds: 30
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: 24
{{- end -}}

{{/* The head goes without the release's ConfigMap: KubeRay clears Redis with a Job built from the head's pod, also when
the release is gone. Arguments: root, part, sharedMemory. */}}
{{- define "baton.volumes" -}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}
{{- if ne .part "head" }}
- name: config
  configMap: {name: {{ include "baton.name" .root }}-config}
{{- end }}
{{- with .root.Values.secrets.security.name }}
- name: security
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .root.Values.modelVolume }}
- name: model
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Arguments: root, part. */}}
{{- define "baton.mounts" -}}
{{- $values := .root.Values -}}
- {name: shm, mountPath: /dev/shm}
{{- if ne .part "head" }}
- {name: config, mountPath: /etc/baton, readOnly: true}
{{- end }}
{{- if $values.secrets.security.name }}
- {name: security, mountPath: {{ $values.secrets.security.mountPath }}, readOnly: true}
{{- end }}
{{- if $values.modelVolume }}
- {name: model, mountPath: {{ $values.modelMountPath }}, readOnly: true}
{{- end }}
{{- end -}}

{{/* Where a pod may run. Arguments: the part's values. */}}
{{- define "baton.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "baton.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
