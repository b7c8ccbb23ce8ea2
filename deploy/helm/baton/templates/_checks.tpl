{{/* Values that cannot work stop the rendering, all of them at once, each with its key and its reason. */}}

{{- define "baton.checks" -}}
{{- $mistakes := concat
      (include "baton.nameMistakes" . | fromYamlArray)
      (include "baton.networkMistakes" . | fromYamlArray)
      (include "baton.securityMistakes" . | fromYamlArray)
      (include "baton.exchangeMistakes" . | fromYamlArray)
      (include "baton.storeMistakes" . | fromYamlArray) -}}
{{- $unset := list -}}
{{- range $part := list "router" "prefill" "decode" -}}
{{- $unset = concat $unset (include "baton.unset" (dict "root" $ "part" $part) | fromYamlArray) -}}
{{- end -}}
{{- $mistakes = concat $mistakes $unset -}}
{{- if not $unset -}}
{{- $mistakes = concat $mistakes (include "baton.upgradeMistakes" . | fromYamlArray) -}}
{{- range $part := list "router" "prefill" "decode" -}}
{{- $mistakes = concat $mistakes (include "baton.partMistakes" (dict "root" $ "part" $part) | fromYamlArray) -}}
{{- end -}}
{{- end -}}
{{- if $mistakes -}}
{{- fail (printf "these values cannot work:\n  %s" (join "\n  " $mistakes)) -}}
{{- end -}}
{{- end -}}

{{- define "baton.nameMistakes" -}}
{{- $name := include "baton.name" . -}}
{{- $mistakes := list -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$" $name) -}}
{{- $mistakes = append $mistakes (printf "config.name: %q must have 1 to 42 lower case letters, digits and dashes, with a letter first" $name) -}}
{{- end -}}
{{- if regexMatch "^[.~]" .Values.config.model.path -}}
{{- $mistakes = append $mistakes (printf "config.model.path: %s is a place on some machine; use a path inside the pod or a hub name" .Values.config.model.path) -}}
{{- end -}}
{{- range $section := list "engine" "prefill" "decode" -}}
{{- $key := ternary "options" "engine_options" (eq $section "engine") -}}
{{- range $option, $_ := dig $key dict (get $.Values.config $section) -}}
{{- if regexMatch "(token|secret|password|api_key|access_key)$" $option -}}
{{- $mistakes = append $mistakes (printf "config.%s.%s.%s: would stand in the manifest for all to read; use secrets.model" $section $key $option) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{- define "baton.exchangeMistakes" -}}
{{- $config := .Values.config -}}
{{- $mistakes := list -}}
{{- $prefill := int (dig "gpus_per_replica" 0 $config.prefill) -}}
{{- $decode := int (dig "gpus_per_replica" 0 $config.decode) -}}
{{- $ours := eq (dig "kv_transfer" "connector" "baton" $config) "baton" -}}
{{- if and $ours (ne $prefill $decode) (ne (dig "engine" "kind" "vllm" $config) "simulated") -}}
{{- $mistakes = append $mistakes (printf "config.decode.gpus_per_replica: is %d, but config.prefill.gpus_per_replica is %d, and engines of unequal tensor parallelism cannot exchange blocks; make them equal, or set config.kv_transfer.connector: vllm-nixl" $decode $prefill) -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{- define "baton.networkMistakes" -}}
{{- $config := .Values.config -}}
{{- $mistakes := list -}}
{{- $hosts := dict "prefill.listen_host" $config.prefill.listen_host "decode.listen_host" $config.decode.listen_host
      "router.http_host" $config.router.http_host "router.grpc_host" $config.router.grpc_host -}}
{{- range $key, $host := $hosts -}}
{{- if or (not $host) (regexMatch "^(localhost|127\\..*|::1)$" (toString $host)) -}}
{{- $mistakes = append $mistakes (printf "config.%s: %v is reached from its own pod only; use 0.0.0.0" $key $host) -}}
{{- end -}}
{{- end -}}
{{- $ports := dict "http_port" $config.router.http_port "grpc_port" $config.router.grpc_port -}}
{{- range $key, $port := $ports -}}
{{- if not (int $port) -}}
{{- $mistakes = append $mistakes (printf "config.router.%s: a Service needs a fixed port, not 0" $key) -}}
{{- end -}}
{{- end -}}
{{- range $taken := include "baton.takenPorts" . | fromYamlArray -}}
{{- range $key, $port := $ports -}}
{{- if and (eq (int $port) (int $taken.port)) (or (eq $key "http_port") (not $taken.head)) -}}
{{- $mistakes = append $mistakes (printf "config.router.%s: %d is held by %s; choose another port" $key (int $port) $taken.holder) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq (int $config.router.http_port) (int $config.router.grpc_port) -}}
{{- $mistakes = append $mistakes (printf "config.router.grpc_port: %d is also config.router.http_port" (int $config.router.grpc_port)) -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{/* Pods are reached from other pods, so every edge is guarded, or accepted as it is; where no NetworkPolicy keeps others
out, that has to be accepted once more. Files are where a Secret is mounted. */}}
{{- define "baton.securityMistakes" -}}
{{- $security := .Values.config.security -}}
{{- $policy := .Values.networkPolicy -}}
{{- $mistakes := list -}}
{{- $open := dig "allow_open" false $security -}}
{{- if not (and $open (or $policy.enabled $policy.allowOpen)) -}}
{{- $unguarded := $open | ternary ", and networkPolicy.enabled is false" "" -}}
{{- $accept := $open | ternary "networkPolicy.allowOpen" "allow_open" -}}
{{- $keys := list (dig "keys" nil $security) (dig "keys_file" nil $security) -}}
{{- $missing := dict
      "keys or keys_file" (list (or (index $keys 0) (index $keys 1)) "nobody is asked for a key")
      "tls" (list (dig "tls" nil $security) "keys and prompts would go to the gRPC port unencrypted")
      "cluster_tls" (list (dig "cluster_tls" nil $security) "any pod that reaches a worker could order work there") -}}
{{- range $key, $found := $missing -}}
{{- if not (index $found 0) -}}
{{- $mistakes = append $mistakes (printf "config.security: %s%s; set %s, or accept it with %s: true" (index $found 1) $unguarded $key $accept) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key := list "keys_file" "tls" "cluster_tls" -}}
{{- if and (dig $key nil $security) (not $.Values.secrets.security.name) -}}
{{- $mistakes = append $mistakes (printf "secrets.security.name: names no Secret, and config.security.%s wants its files from it" $key) -}}
{{- end -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{- define "baton.storeMistakes" -}}
{{- $values := .Values -}}
{{- $mistakes := list -}}
{{- if and (gt (int $values.config.router.replicas) 1) (eq $values.config.store.url "memory://") -}}
{{- $mistakes = append $mistakes (printf "config.router.replicas: %d routers share their state in Redis; set config.store.url to redis://HOST:PORT/0" (int $values.config.router.replicas)) -}}
{{- end -}}
{{- if and $values.config.store.password_env (not $values.secrets.redis.name) -}}
{{- $mistakes = append $mistakes (printf "secrets.redis.name: names no Secret, and config.store.password_env wants %s from it" $values.config.store.password_env) -}}
{{- end -}}
{{- if has $values.config.store.password_env (list "REDIS_PASSWORD" "RAY_REDIS_ADDRESS") -}}
{{- $mistakes = append $mistakes (printf "config.store.password_env: KubeRay keeps %s for itself; use BATON_REDIS_PASSWORD" $values.config.store.password_env) -}}
{{- end -}}
{{- if and $values.gcsFaultTolerance.enabled (not $values.gcsFaultTolerance.redisAddress) -}}
{{- $mistakes = append $mistakes "gcsFaultTolerance.redisAddress: the GCS keeps its tables in Redis; set it to HOST:PORT" -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{- define "baton.upgradeMistakes" -}}
{{- $mistakes := list -}}
{{- $delay := .Values.upgrade.clusterDeletionDelaySeconds -}}
{{- if and (not (kindIs "invalid" $delay)) (lt (int $delay) (int (include "baton.longestGrace" .))) -}}
{{- $mistakes = append $mistakes (printf "upgrade.clusterDeletionDelaySeconds: %d s would end the old cluster's streams; the longest grace period is %s s" (int $delay) (include "baton.longestGrace" .)) -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{/* Keys from which the chart computes. Arguments: root, part. */}}
{{- define "baton.unset" -}}
{{- $own := get .root.Values.config .part -}}
{{- $mistakes := list -}}
{{- $keys := list "replicas" "cpus_per_replica" "surge_percent" -}}
{{- range $key := concat $keys (eq .part "router" | ternary (list "request_deadline_s") (list "drain_s")) -}}
{{- if not (hasKey $own $key) -}}
{{- $mistakes = append $mistakes (printf "config.%s.%s: has to stay set" $.part $key) -}}
{{- end -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}

{{/* Arguments: root, part. */}}
{{- define "baton.partMistakes" -}}
{{- $config := .root.Values.config -}}
{{- $own := get $config .part -}}
{{- $values := get .root.Values .part -}}
{{- $part := include "baton.part" . | fromYaml -}}
{{- $mistakes := list -}}
{{- if lt $part.gpus $part.tensorParallelism -}}
{{- $mistakes = append $mistakes (printf "%s.gpus: %d a pod, but config.%s.gpus_per_replica, the tensor parallelism, is %d" .part (int $part.gpus) .part (int $part.tensorParallelism)) -}}
{{- end -}}
{{- if ne .part "router" -}}
{{- if and (eq $config.engine.device "gpu") (ne (dig "kind" "vllm" $config.engine) "simulated") (eq (int $part.tensorParallelism) 0) -}}
{{- $mistakes = append $mistakes (printf "config.%s.gpus_per_replica: is 0, but config.engine.device is gpu" .part) -}}
{{- end -}}
{{- if and (eq $config.engine.device "cpu") (gt (int $part.gpus) 0) -}}
{{- $mistakes = append $mistakes (printf "%s: pods with %d GPUs, but config.engine.device is cpu" .part (int $part.gpus)) -}}
{{- end -}}
{{- end -}}
{{- if gt (int $part.minimum) (int $part.maximum) -}}
{{- $mistakes = append $mistakes (printf "config.%s.autoscale: min_replicas %d is above max_replicas %d" .part (int $part.minimum) (int $part.maximum)) -}}
{{- end -}}
{{- if and $own.autoscale (ne (int $own.replicas) 1) -}}
{{- $mistakes = append $mistakes (printf "config.%s.replicas: is %d, but config.%s.autoscale sizes the pool; leave one of them out" .part (int $own.replicas) .part) -}}
{{- end -}}
{{- if and (lt (int $part.minimum) (int $part.maximum)) (not .root.Values.autoscaler.enabled) -}}
{{- $mistakes = append $mistakes (printf "autoscaler.enabled: is false, but %s may grow from %d to %d pods" .part (int $part.minimum) (int $part.maximum)) -}}
{{- end -}}
{{- if lt (int $part.grace) (add (int $part.longest) 60) -}}
{{- $mistakes = append $mistakes (printf "%s.terminationGracePeriodSeconds: %d s, but what its pods run may take %d s to end well, and Serve and Ray 60 s more" .part (int $part.grace) (int $part.longest)) -}}
{{- end -}}
{{- $minAvailable := $values.minAvailable -}}
{{- if and (not (kindIs "invalid" $minAvailable)) (gt (int $minAvailable) (int $part.minimum)) -}}
{{- $mistakes = append $mistakes (printf "%s.minAvailable: %d pods, but there may be only %d" .part (int $minAvailable) (int $part.minimum)) -}}
{{- end -}}
{{- $elsewhere := list -}}
{{- range $other := list "router" "prefill" "decode" -}}
{{- if ne $other $.part -}}{{- $elsewhere = concat $elsewhere (keys (dig "resources" dict (get $config $other))) -}}{{- end -}}
{{- end -}}
{{- $alone := list -}}
{{- range $name := keys (dig "resources" dict $own) -}}
{{- if not (has $name $elsewhere) -}}{{- $alone = append $alone $name -}}{{- end -}}
{{- end -}}
{{- if not $alone -}}
{{- $mistakes = append $mistakes (printf "config.%s.resources: name one that no other part has, as {baton_%s: 1}; it places the replicas" .part .part) -}}
{{- end -}}
{{- toYaml $mistakes -}}
{{- end -}}
