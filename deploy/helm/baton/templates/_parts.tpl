{{/* What the chart computes of a part: its sizes, resources and times. */}}

{{/* Arguments: root, part. Returns YAML. Seconds; `longest` is the longest that something in one of its pods may run:
the part's own drain, or a stream through the HTTP proxy that Serve starts in every pod. */}}
{{- define "baton.part" -}}
{{- $config := .root.Values.config -}}
{{- $own := get $config .part -}}
{{- $values := get .root.Values .part -}}
{{- $smallest := int $own.replicas -}}
{{- $largest := $smallest -}}
{{- with $own.autoscale -}}
{{- $smallest = int (dig "min_replicas" 1 .) -}}
{{- $largest = int (dig "max_replicas" 1 .) -}}
{{- end -}}
{{- $surge := div (add (mul $largest (int $own.surge_percent)) 99) 100 -}}
{{- $deadline := $config.router.request_deadline_s -}}
{{- $drain := $own.drain_s -}}
{{- if eq .part "router" -}}{{- $drain = mulf 2.0 $deadline -}}{{- end -}}
{{- $gpus := int (dig "gpus_per_replica" 0 $own) -}}
{{- $offered := dict "CPU" (toString (ceil $own.cpus_per_replica)) -}}
{{- range $name, $amount := $own.resources -}}
{{- $_ := set $offered $name (toString $amount) -}}
{{- end -}}
{{- if $gpus -}}{{- $_ := set $offered "GPU" (toString $gpus) -}}{{- end -}}
{{- if dig "accelerator_type" "" $own -}}
{{- $_ := set $offered (printf "accelerator_type:%s" $own.accelerator_type) "1" -}}
{{- end -}}
{{- $longest := int (ceil (maxf $drain $deadline)) -}}
minimum: {{ $smallest }}
maximum: {{ add $largest $surge }}
drain: {{ int (ceil $drain) }}
longest: {{ $longest }}
grace: {{ int ($values.terminationGracePeriodSeconds | default (add $longest 60)) }}
tensorParallelism: {{ $gpus }}
gpus: {{ int (kindIs "invalid" $values.gpus | ternary $gpus $values.gpus) }}
resources: {{ toJson $offered }}
{{- end -}}

{{/* The longest grace period of all pods. Arguments: root. */}}
{{- define "baton.longestGrace" -}}
{{- $longest := 0 -}}
{{- range $part := list "router" "prefill" "decode" -}}
{{- $longest = max $longest (include "baton.part" (dict "root" $ "part" $part) | fromYaml).grace -}}
{{- end -}}
{{- $longest -}}
{{- end -}}
