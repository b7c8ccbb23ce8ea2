{{/* Names, labels and the image. */}}

{{- define "baton.name" -}}
{{- .Values.config.name | default .Release.Name -}}
{{- end -}}

{{- define "baton.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.config.engine.device) }}
{{- end -}}
{{- end -}}

{{/* What selects the release's pods. Not by `app.kubernetes.io/name`: on pods that is KubeRay's, whose own Services select
by it. Arguments: root. */}}
{{- define "baton.selector" -}}
baton/cluster: {{ include "baton.name" . }}
{{- end -}}

{{- define "baton.labels" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ include "baton.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Baton's configuration as the application gets it: the values, and the release's name. */}}
{{- define "baton.config" -}}
{{- toYaml (merge (dict "name" (include "baton.name" .)) (deepCopy .Values.config)) -}}
{{- end -}}
