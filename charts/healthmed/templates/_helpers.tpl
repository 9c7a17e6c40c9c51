{{/* What every object is labelled with; (dict "root" $ "component" "api") */}}
{{- define "healthmed.labels" -}}
{{ include "healthmed.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "healthmed.selector" -}}
app.kubernetes.io/name: healthmed
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "healthmed.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* Where a server of the chart's own is found: the Service's name. */}}
{{- define "healthmed.server" -}}
{{ .root.Release.Name }}-{{ .component }}
{{- end }}

{{- define "healthmed.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "healthmed.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* One key of the Secret as an environment variable. */}}
{{- define "healthmed.secret" -}}
- name: {{ .key }}
  valueFrom:
    secretKeyRef: {name: {{ .root.Values.secrets.name }}, key: {{ .key }}}
{{- end }}

{{/* What every process of ours must know to start (domain/settings.py). */}}
{{- define "healthmed.keys" -}}
{{- $keys := list "DATABASE_URL" "BROKER_URL" "CACHE_URL" "JWT_KEYS" "DATA_KEYS" "HASH_KEY" }}
{{- range $keys }}
{{ include "healthmed.secret" (dict "root" $ "key" .) }}
{{- end }}
{{- end }}

{{/* Spread over zones and machines, as far as there are any. */}}
{{- define "healthmed.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: {{ .root.Values.topology.zones }}
    labelSelector:
      matchLabels: {{- include "healthmed.selector" . | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "healthmed.selector" . | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}

{{/* The container of our image: (dict "root" $ "name" … "command" (list …) "resources" … "env" "…" "more" "probes, ports …") */}}
{{- define "healthmed.container" -}}
name: {{ .name }}
image: {{ .image | default (include "healthmed.image" .root) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: {{ .command | toJson }}
env:
  {{- include "healthmed.keys" .root | trim | nindent 2 }}
  {{- with .env }}
  {{- trim . | nindent 2 }}
  {{- end }}
resources: {{- toYaml .resources | nindent 2 }}
securityContext: {{- include "healthmed.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if .root.Values.caBundle.configMap }}
  - {name: ca, mountPath: /etc/healthmed/ca, readOnly: true}
  {{- end }}
{{- end }}

{{/* What holds for every pod of our image, around its containers. */}}
{{- define "healthmed.pod" -}}
serviceAccountName: {{ .root.Release.Name }}-{{ .component }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- include "healthmed.podSecurity" (dict "user" 10001) | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
  {{- with .root.Values.caBundle.configMap }}
  - name: ca
    configMap:
      name: {{ . }}
      items: [{key: {{ $.root.Values.caBundle.key }}, path: database.pem}]
  {{- end }}
{{- end }}

{{/* A Deployment of ours: one process that differs from the others in its command, what it is told, and how it is seen to live.
     (dict "root" $ "component" … "values" … "command" (list …) "grace" seconds "env" "…" "container" "probes, ports …") */}}
{{- define "healthmed.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .root.Release.Name }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "healthmed.labels" . | nindent 4 }}
spec:
  {{- if not (dig "autoscaling" "enabled" false .values) }}
  replicas: {{ .values.replicas | default 1 }}
  {{- end }}
  revisionHistoryLimit: 5
  progressDeadlineSeconds: 900
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 25%, maxUnavailable: 0}
  selector:
    matchLabels: {{- include "healthmed.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "healthmed.labels" . | nindent 8 }}
      annotations:
        checksum/settings: {{ include "healthmed.settings" .root | sha256sum }}
    spec:
      {{- include "healthmed.pod" . | nindent 6 }}
      {{- if .root.Values.priority.create }}
      priorityClassName: {{ .root.Release.Name }}
      {{- end }}
      terminationGracePeriodSeconds: {{ .grace }}
      {{- include "healthmed.spread" . | nindent 6 }}
      initContainers:
        # Until the migration has run; a schema of a newer version will do, as after a rollback.
        - {{- include "healthmed.container" (dict "root" .root "name" "wait-for-schema" "resources" .root.Values.migration.resources
            "command" (list "python" "-m" "domain.migrations" "wait")) | nindent 10 }}
      containers:
        - {{- include "healthmed.container" (dict "root" .root "name" .component "resources" .values.resources "command" .command
            "env" .env) | nindent 10 }}
          envFrom:
            - configMapRef: {name: {{ .root.Release.Name }}-settings}
          {{- trim .container | nindent 10 }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .root.Release.Name }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "healthmed.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{/* Whether the process touched its file lately: what a worker's or relay's life is told by. It asks nothing of Redis or Postgres. */}}
{{- define "healthmed.heartbeat" -}}
startupProbe:
  exec: {command: [test, -e, /tmp/heartbeat]}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  exec: {command: [sh, -c, 'test -n "$(find /tmp/heartbeat -newermt "30 seconds ago")"']}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
ports:
  - {name: metrics, containerPort: 9100}
{{- end }}

{{/* Autoscaling by CPU, or by a figure of Prometheus through KEDA with CPU beside it: whichever asks for more. */}}
{{- define "healthmed.autoscaling" -}}
{{- with .values.autoscaling }}
{{- if and .enabled .keda }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ $.root.Release.Name }}-{{ $.component }}
  namespace: {{ $.root.Release.Namespace }}
  labels: {{- include "healthmed.labels" $ | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ $.root.Release.Name }}-{{ $.component }}}
  minReplicaCount: {{ .min }}
  maxReplicaCount: {{ .max }}
  pollingInterval: 10
  cooldownPeriod: 300
  fallback:  # when Prometheus doesn't answer
    failureThreshold: 3
    replicas: {{ .min }}
    behavior: currentReplicasIfHigher
  triggers:
    - type: prometheus
      metadata:
        serverAddress: {{ $.root.Values.monitoring.prometheus }}
        query: {{ .query }}
        threshold: {{ .perPod | quote }}
    - type: cpu
      metricType: Utilization
      metadata: {value: {{ .cpu | quote }}}
{{- else if .enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $.root.Release.Name }}-{{ $.component }}
  namespace: {{ $.root.Release.Namespace }}
  labels: {{- include "healthmed.labels" $ | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $.root.Release.Name }}-{{ $.component }}}
  minReplicas: {{ .min }}
  maxReplicas: {{ .max }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ .cpu }}}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      policies: [{type: Percent, value: 100, periodSeconds: 15}]
    scaleDown:
      stabilizationWindowSeconds: 300
      policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}
{{- end }}
{{- end }}

{{/* At most one pod of a kind leaves at a time; of one pod alone none is asked to stay, or no machine could ever be emptied. */}}
{{- define "healthmed.disruption" -}}
{{- if gt (int (ternary (dig "autoscaling" "min" 1 .values) .values.replicas (dig "autoscaling" "enabled" false .values))) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .root.Release.Name }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "healthmed.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "healthmed.selector" . | nindent 6 }}
{{- end }}
{{- end }}
