//! The reference's own types, as far as a pod's spec goes: facts, no code.

/// How one field is printed.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Text; absent is "".
    Text,
    /// A number; absent is 0.
    Number,
    /// A flag; absent is false.
    Flag,
    /// Absent is null: pointers to scalars, lists and maps of scalars, quantities.
    Nullable,
    /// A number or a name; absent is 0.
    IntOrString,
    /// A quantity that is no pointer; absent is "0".
    Quantity,
    /// A struct, printed even where absent.
    Struct(&'static Type),
    /// A pointer to a struct.
    Pointer(&'static Type),
    List(&'static Type),
    /// A struct whose fields are printed in place of it.
    Inline(&'static Type),
    /// An external type: JSON names, empty fields left out.
    External(&'static [&'static str]),
}

/// Name as Go has it, as JSON has it, and how it is printed.
pub type Entry = (&'static str, &'static str, Kind);
pub type Type = [Entry];

use Kind::{External, Flag, Inline, IntOrString, List, Nullable, Number, Pointer, Quantity, Struct, Text};

const SELECTOR: &[&str] = &["matchLabels", "matchExpressions"];

static NAME: &Type = &[("Name", "name", Text)];
static KEY_TO_PATH: &Type = &[("Key", "key", Text), ("Path", "path", Text), ("Mode", "mode", Nullable)];
static FIELD_REF: &Type = &[("APIVersion", "apiVersion", Text), ("FieldPath", "fieldPath", Text)];
static RESOURCE_REF: &Type =
    &[("ContainerName", "containerName", Text), ("Resource", "resource", Text), ("Divisor", "divisor", Quantity)];
static DOWNWARD_FILE: &Type = &[
    ("Path", "path", Text),
    ("FieldRef", "fieldRef", Pointer(FIELD_REF)),
    ("ResourceFieldRef", "resourceFieldRef", Pointer(RESOURCE_REF)),
    ("Mode", "mode", Nullable),
];
static NAMED_ITEMS: &Type =
    &[("Name", "name", Text), ("Items", "items", List(KEY_TO_PATH)), ("Optional", "optional", Nullable)];
static PROJECTION: &Type = &[
    ("Secret", "secret", Pointer(NAMED_ITEMS)),
    ("DownwardAPI", "downwardAPI", Pointer(&[("Items", "items", List(DOWNWARD_FILE))])),
    ("ConfigMap", "configMap", Pointer(NAMED_ITEMS)),
    (
        "ServiceAccountToken",
        "serviceAccountToken",
        Pointer(&[
            ("Audience", "audience", Text),
            ("ExpirationSeconds", "expirationSeconds", Number),
            ("Path", "path", Text),
        ]),
    ),
    (
        "ClusterTrustBundle",
        "clusterTrustBundle",
        Pointer(&[
            ("Name", "name", Nullable),
            ("SignerName", "signerName", Nullable),
            ("LabelSelector", "labelSelector", External(SELECTOR)),
            ("Optional", "optional", Nullable),
            ("Path", "path", Text),
        ]),
    ),
    (
        "PodCertificate",
        "podCertificate",
        Pointer(&[
            ("SignerName", "signerName", Text),
            ("KeyType", "keyType", Text),
            ("MaxExpirationSeconds", "maxExpirationSeconds", Nullable),
            ("CredentialBundlePath", "credentialBundlePath", Text),
            ("KeyPath", "keyPath", Text),
            ("CertificateChainPath", "certificateChainPath", Text),
            ("UserAnnotations", "userAnnotations", Nullable),
        ]),
    ),
];
static OBJECT_META: &[&str] = &["name", "generateName", "namespace", "labels", "annotations"];
static CLAIM_SPEC: &Type = &[
    ("AccessModes", "accessModes", Nullable),
    ("Selector", "selector", External(SELECTOR)),
    ("Resources", "resources", Struct(&[("Limits", "limits", Nullable), ("Requests", "requests", Nullable)])),
    ("VolumeName", "volumeName", Text),
    ("StorageClassName", "storageClassName", Nullable),
    ("VolumeMode", "volumeMode", Nullable),
    (
        "DataSource",
        "dataSource",
        Pointer(&[("APIGroup", "apiGroup", Nullable), ("Kind", "kind", Text), ("Name", "name", Text)]),
    ),
    (
        "DataSourceRef",
        "dataSourceRef",
        Pointer(&[
            ("APIGroup", "apiGroup", Nullable),
            ("Kind", "kind", Text),
            ("Name", "name", Text),
            ("Namespace", "namespace", Nullable),
        ]),
    ),
    ("VolumeAttributesClassName", "volumeAttributesClassName", Nullable),
];
static VOLUME_SOURCE: &Type = &[
    ("HostPath", "hostPath", Pointer(&[("Path", "path", Text), ("Type", "type", Nullable)])),
    ("EmptyDir", "emptyDir", Pointer(&[("Medium", "medium", Text), ("SizeLimit", "sizeLimit", Nullable)])),
    (
        "GCEPersistentDisk",
        "gcePersistentDisk",
        Pointer(&[
            ("PDName", "pdName", Text),
            ("FSType", "fsType", Text),
            ("Partition", "partition", Number),
            ("ReadOnly", "readOnly", Flag),
        ]),
    ),
    (
        "AWSElasticBlockStore",
        "awsElasticBlockStore",
        Pointer(&[
            ("VolumeID", "volumeID", Text),
            ("FSType", "fsType", Text),
            ("Partition", "partition", Number),
            ("ReadOnly", "readOnly", Flag),
        ]),
    ),
    (
        "GitRepo",
        "gitRepo",
        Pointer(&[
            ("Repository", "repository", Text),
            ("Revision", "revision", Text),
            ("Directory", "directory", Text),
        ]),
    ),
    (
        "Secret",
        "secret",
        Pointer(&[
            ("SecretName", "secretName", Text),
            ("Items", "items", List(KEY_TO_PATH)),
            ("DefaultMode", "defaultMode", Nullable),
            ("Optional", "optional", Nullable),
        ]),
    ),
    ("NFS", "nfs", Pointer(&[("Server", "server", Text), ("Path", "path", Text), ("ReadOnly", "readOnly", Flag)])),
    (
        "ISCSI",
        "iscsi",
        Pointer(&[
            ("TargetPortal", "targetPortal", Text),
            ("IQN", "iqn", Text),
            ("Lun", "lun", Number),
            ("ISCSIInterface", "iscsiInterface", Text),
            ("FSType", "fsType", Text),
            ("ReadOnly", "readOnly", Flag),
            ("Portals", "portals", Nullable),
            ("DiscoveryCHAPAuth", "chapAuthDiscovery", Flag),
            ("SessionCHAPAuth", "chapAuthSession", Flag),
            ("SecretRef", "secretRef", Pointer(NAME)),
            ("InitiatorName", "initiatorName", Nullable),
        ]),
    ),
    (
        "Glusterfs",
        "glusterfs",
        Pointer(&[("EndpointsName", "endpoints", Text), ("Path", "path", Text), ("ReadOnly", "readOnly", Flag)]),
    ),
    (
        "PersistentVolumeClaim",
        "persistentVolumeClaim",
        Pointer(&[("ClaimName", "claimName", Text), ("ReadOnly", "readOnly", Flag)]),
    ),
    (
        "RBD",
        "rbd",
        Pointer(&[
            ("CephMonitors", "monitors", Nullable),
            ("RBDImage", "image", Text),
            ("FSType", "fsType", Text),
            ("RBDPool", "pool", Text),
            ("RadosUser", "user", Text),
            ("Keyring", "keyring", Text),
            ("SecretRef", "secretRef", Pointer(NAME)),
            ("ReadOnly", "readOnly", Flag),
        ]),
    ),
    (
        "Quobyte",
        "quobyte",
        Pointer(&[
            ("Registry", "registry", Text),
            ("Volume", "volume", Text),
            ("ReadOnly", "readOnly", Flag),
            ("User", "user", Text),
            ("Group", "group", Text),
            ("Tenant", "tenant", Text),
        ]),
    ),
    (
        "FlexVolume",
        "flexVolume",
        Pointer(&[
            ("Driver", "driver", Text),
            ("FSType", "fsType", Text),
            ("SecretRef", "secretRef", Pointer(NAME)),
            ("ReadOnly", "readOnly", Flag),
            ("Options", "options", Nullable),
        ]),
    ),
    (
        "Cinder",
        "cinder",
        Pointer(&[
            ("VolumeID", "volumeID", Text),
            ("FSType", "fsType", Text),
            ("ReadOnly", "readOnly", Flag),
            ("SecretRef", "secretRef", Pointer(NAME)),
        ]),
    ),
    (
        "CephFS",
        "cephfs",
        Pointer(&[
            ("Monitors", "monitors", Nullable),
            ("Path", "path", Text),
            ("User", "user", Text),
            ("SecretFile", "secretFile", Text),
            ("SecretRef", "secretRef", Pointer(NAME)),
            ("ReadOnly", "readOnly", Flag),
        ]),
    ),
    ("Flocker", "flocker", Pointer(&[("DatasetName", "datasetName", Text), ("DatasetUUID", "datasetUUID", Text)])),
    (
        "DownwardAPI",
        "downwardAPI",
        Pointer(&[("Items", "items", List(DOWNWARD_FILE)), ("DefaultMode", "defaultMode", Nullable)]),
    ),
    (
        "FC",
        "fc",
        Pointer(&[
            ("TargetWWNs", "targetWWNs", Nullable),
            ("Lun", "lun", Nullable),
            ("FSType", "fsType", Text),
            ("ReadOnly", "readOnly", Flag),
            ("WWIDs", "wwids", Nullable),
        ]),
    ),
    (
        "AzureFile",
        "azureFile",
        Pointer(&[
            ("SecretName", "secretName", Text),
            ("ShareName", "shareName", Text),
            ("ReadOnly", "readOnly", Flag),
        ]),
    ),
    (
        "ConfigMap",
        "configMap",
        Pointer(&[
            ("Name", "name", Text),
            ("Items", "items", List(KEY_TO_PATH)),
            ("DefaultMode", "defaultMode", Nullable),
            ("Optional", "optional", Nullable),
        ]),
    ),
    (
        "VsphereVolume",
        "vsphereVolume",
        Pointer(&[
            ("VolumePath", "volumePath", Text),
            ("FSType", "fsType", Text),
            ("StoragePolicyName", "storagePolicyName", Text),
            ("StoragePolicyID", "storagePolicyID", Text),
        ]),
    ),
    (
        "AzureDisk",
        "azureDisk",
        Pointer(&[
            ("DiskName", "diskName", Text),
            ("DataDiskURI", "diskURI", Text),
            ("CachingMode", "cachingMode", Nullable),
            ("FSType", "fsType", Nullable),
            ("ReadOnly", "readOnly", Nullable),
            ("Kind", "kind", Nullable),
        ]),
    ),
    ("PhotonPersistentDisk", "photonPersistentDisk", Pointer(&[("PdID", "pdID", Text), ("FSType", "fsType", Text)])),
    (
        "Projected",
        "projected",
        Pointer(&[("Sources", "sources", List(PROJECTION)), ("DefaultMode", "defaultMode", Nullable)]),
    ),
    (
        "PortworxVolume",
        "portworxVolume",
        Pointer(&[("VolumeID", "volumeID", Text), ("FSType", "fsType", Text), ("ReadOnly", "readOnly", Flag)]),
    ),
    (
        "ScaleIO",
        "scaleIO",
        Pointer(&[
            ("Gateway", "gateway", Text),
            ("System", "system", Text),
            ("SecretRef", "secretRef", Pointer(NAME)),
            ("SSLEnabled", "sslEnabled", Flag),
            ("ProtectionDomain", "protectionDomain", Text),
            ("StoragePool", "storagePool", Text),
            ("StorageMode", "storageMode", Text),
            ("VolumeName", "volumeName", Text),
            ("FSType", "fsType", Text),
            ("ReadOnly", "readOnly", Flag),
        ]),
    ),
    (
        "StorageOS",
        "storageos",
        Pointer(&[
            ("VolumeName", "volumeName", Text),
            ("VolumeNamespace", "volumeNamespace", Text),
            ("FSType", "fsType", Text),
            ("ReadOnly", "readOnly", Flag),
            ("SecretRef", "secretRef", Pointer(NAME)),
        ]),
    ),
    (
        "CSI",
        "csi",
        Pointer(&[
            ("Driver", "driver", Text),
            ("ReadOnly", "readOnly", Nullable),
            ("FSType", "fsType", Nullable),
            ("VolumeAttributes", "volumeAttributes", Nullable),
            ("NodePublishSecretRef", "nodePublishSecretRef", Pointer(NAME)),
        ]),
    ),
    (
        "Ephemeral",
        "ephemeral",
        Pointer(&[(
            "VolumeClaimTemplate",
            "volumeClaimTemplate",
            Pointer(&[("", "metadata", External(OBJECT_META)), ("Spec", "spec", Struct(CLAIM_SPEC))]),
        )]),
    ),
    ("Image", "image", Pointer(&[("Reference", "reference", Text), ("PullPolicy", "pullPolicy", Text)])),
];
static VOLUME: &Type = &[("Name", "name", Text), ("", "", Inline(VOLUME_SOURCE))];

static HTTP_GET: &Type = &[
    ("Path", "path", Text),
    ("Port", "port", IntOrString),
    ("Host", "host", Text),
    ("Scheme", "scheme", Text),
    ("HTTPHeaders", "httpHeaders", List(&[("Name", "name", Text), ("Value", "value", Text)])),
];
static EXEC: &Type = &[("Command", "command", Nullable)];
static TCP: &Type = &[("Port", "port", IntOrString), ("Host", "host", Text)];
static PROBE: &Type = &[
    ("Exec", "exec", Pointer(EXEC)),
    ("HTTPGet", "httpGet", Pointer(HTTP_GET)),
    ("TCPSocket", "tcpSocket", Pointer(TCP)),
    ("GRPC", "grpc", Pointer(&[("Port", "port", Number), ("Service", "service", Nullable)])),
    ("InitialDelaySeconds", "initialDelaySeconds", Number),
    ("TimeoutSeconds", "timeoutSeconds", Number),
    ("PeriodSeconds", "periodSeconds", Number),
    ("SuccessThreshold", "successThreshold", Number),
    ("FailureThreshold", "failureThreshold", Number),
    ("TerminationGracePeriodSeconds", "terminationGracePeriodSeconds", Nullable),
];
static HOOK: &Type = &[
    ("Exec", "exec", Pointer(EXEC)),
    ("HTTPGet", "httpGet", Pointer(HTTP_GET)),
    ("TCPSocket", "tcpSocket", Pointer(TCP)),
    ("Sleep", "sleep", Pointer(&[("Seconds", "seconds", Number)])),
];
static SELINUX: &Type =
    &[("User", "user", Text), ("Role", "role", Text), ("Type", "type", Text), ("Level", "level", Text)];
static WINDOWS: &Type = &[
    ("GMSACredentialSpecName", "gmsaCredentialSpecName", Nullable),
    ("GMSACredentialSpec", "gmsaCredentialSpec", Nullable),
    ("RunAsUserName", "runAsUserName", Nullable),
    ("HostProcess", "hostProcess", Nullable),
];
static PROFILE: &Type = &[("Type", "type", Text), ("LocalhostProfile", "localhostProfile", Nullable)];
pub static SECURITY: &Type = &[
    ("Capabilities", "capabilities", Pointer(&[("Add", "add", Nullable), ("Drop", "drop", Nullable)])),
    ("Privileged", "privileged", Nullable),
    ("SELinuxOptions", "seLinuxOptions", Pointer(SELINUX)),
    ("WindowsOptions", "windowsOptions", Pointer(WINDOWS)),
    ("RunAsUser", "runAsUser", Nullable),
    ("RunAsGroup", "runAsGroup", Nullable),
    ("RunAsNonRoot", "runAsNonRoot", Nullable),
    ("ReadOnlyRootFilesystem", "readOnlyRootFilesystem", Nullable),
    ("AllowPrivilegeEscalation", "allowPrivilegeEscalation", Nullable),
    ("ProcMount", "procMount", Nullable),
    ("SeccompProfile", "seccompProfile", Pointer(PROFILE)),
    ("AppArmorProfile", "appArmorProfile", Pointer(PROFILE)),
];
static KEY_SELECTOR: &Type = &[("Name", "name", Text), ("Key", "key", Text), ("Optional", "optional", Nullable)];
static ENV: &Type = &[
    ("Name", "name", Text),
    ("Value", "value", Text),
    (
        "ValueFrom",
        "valueFrom",
        Pointer(&[
            ("FieldRef", "fieldRef", Pointer(FIELD_REF)),
            ("ResourceFieldRef", "resourceFieldRef", Pointer(RESOURCE_REF)),
            ("ConfigMapKeyRef", "configMapKeyRef", Pointer(KEY_SELECTOR)),
            ("SecretKeyRef", "secretKeyRef", Pointer(KEY_SELECTOR)),
            (
                "FileKeyRef",
                "fileKeyRef",
                Pointer(&[
                    ("VolumeName", "volumeName", Text),
                    ("Path", "path", Text),
                    ("Key", "key", Text),
                    ("Optional", "optional", Nullable),
                ]),
            ),
        ]),
    ),
];
static OPTIONAL_NAME: &Type = &[("Name", "name", Text), ("Optional", "optional", Nullable)];
static RESOURCES: &Type = &[
    ("Limits", "limits", Nullable),
    ("Requests", "requests", Nullable),
    ("Claims", "claims", List(&[("Name", "name", Text), ("Request", "request", Text)])),
];
static CONTAINER: &Type = &[
    ("Name", "name", Text),
    ("Image", "image", Text),
    ("Command", "command", Nullable),
    ("Args", "args", Nullable),
    ("WorkingDir", "workingDir", Text),
    (
        "Ports",
        "ports",
        List(&[
            ("Name", "name", Text),
            ("HostPort", "hostPort", Number),
            ("ContainerPort", "containerPort", Number),
            ("Protocol", "protocol", Text),
            ("HostIP", "hostIP", Text),
        ]),
    ),
    (
        "EnvFrom",
        "envFrom",
        List(&[
            ("Prefix", "prefix", Text),
            ("ConfigMapRef", "configMapRef", Pointer(OPTIONAL_NAME)),
            ("SecretRef", "secretRef", Pointer(OPTIONAL_NAME)),
        ]),
    ),
    ("Env", "env", List(ENV)),
    ("Resources", "resources", Struct(RESOURCES)),
    (
        "ResizePolicy",
        "resizePolicy",
        List(&[("ResourceName", "resourceName", Text), ("RestartPolicy", "restartPolicy", Text)]),
    ),
    ("RestartPolicy", "restartPolicy", Nullable),
    (
        "RestartPolicyRules",
        "restartPolicyRules",
        List(&[
            ("Action", "action", Text),
            ("ExitCodes", "exitCodes", Pointer(&[("Operator", "operator", Text), ("Values", "values", Nullable)])),
        ]),
    ),
    (
        "VolumeMounts",
        "volumeMounts",
        List(&[
            ("Name", "name", Text),
            ("ReadOnly", "readOnly", Flag),
            ("RecursiveReadOnly", "recursiveReadOnly", Nullable),
            ("MountPath", "mountPath", Text),
            ("SubPath", "subPath", Text),
            ("MountPropagation", "mountPropagation", Nullable),
            ("SubPathExpr", "subPathExpr", Text),
        ]),
    ),
    ("VolumeDevices", "volumeDevices", List(&[("Name", "name", Text), ("DevicePath", "devicePath", Text)])),
    ("LivenessProbe", "livenessProbe", Pointer(PROBE)),
    ("ReadinessProbe", "readinessProbe", Pointer(PROBE)),
    ("StartupProbe", "startupProbe", Pointer(PROBE)),
    (
        "Lifecycle",
        "lifecycle",
        Pointer(&[
            ("PostStart", "postStart", Pointer(HOOK)),
            ("PreStop", "preStop", Pointer(HOOK)),
            ("StopSignal", "stopSignal", Nullable),
        ]),
    ),
    ("TerminationMessagePath", "terminationMessagePath", Text),
    ("TerminationMessagePolicy", "terminationMessagePolicy", Text),
    ("ImagePullPolicy", "imagePullPolicy", Text),
    ("SecurityContext", "securityContext", Pointer(SECURITY)),
    ("Stdin", "stdin", Flag),
    ("StdinOnce", "stdinOnce", Flag),
    ("TTY", "tty", Flag),
];
pub static EPHEMERAL: &Type = &[("", "", Inline(CONTAINER)), ("TargetContainerName", "targetContainerName", Text)];

/// The reference keeps what concerns the machine's namespaces here; JSON has it in the spec.
static POD_SECURITY: &Type = &[
    ("HostNetwork", "/hostNetwork", Flag),
    ("HostPID", "/hostPID", Flag),
    ("HostIPC", "/hostIPC", Flag),
    ("ShareProcessNamespace", "/shareProcessNamespace", Nullable),
    ("HostUsers", "/hostUsers", Nullable),
    ("SELinuxOptions", "seLinuxOptions", Pointer(SELINUX)),
    ("WindowsOptions", "windowsOptions", Pointer(WINDOWS)),
    ("RunAsUser", "runAsUser", Nullable),
    ("RunAsGroup", "runAsGroup", Nullable),
    ("RunAsNonRoot", "runAsNonRoot", Nullable),
    ("SupplementalGroups", "supplementalGroups", Nullable),
    ("SupplementalGroupsPolicy", "supplementalGroupsPolicy", Nullable),
    ("FSGroup", "fsGroup", Nullable),
    ("FSGroupChangePolicy", "fsGroupChangePolicy", Nullable),
    ("Sysctls", "sysctls", List(&[("Name", "name", Text), ("Value", "value", Text)])),
    ("SeccompProfile", "seccompProfile", Pointer(PROFILE)),
    ("AppArmorProfile", "appArmorProfile", Pointer(PROFILE)),
    ("SELinuxChangePolicy", "seLinuxChangePolicy", Nullable),
];

static REQUIREMENT: &Type = &[("Key", "key", Text), ("Operator", "operator", Text), ("Values", "values", Nullable)];
static NODE_TERM: &Type =
    &[("MatchExpressions", "matchExpressions", List(REQUIREMENT)), ("MatchFields", "matchFields", List(REQUIREMENT))];
static POD_TERM: &Type = &[
    ("LabelSelector", "labelSelector", External(SELECTOR)),
    ("Namespaces", "namespaces", Nullable),
    ("TopologyKey", "topologyKey", Text),
    ("NamespaceSelector", "namespaceSelector", External(SELECTOR)),
    ("MatchLabelKeys", "matchLabelKeys", Nullable),
    ("MismatchLabelKeys", "mismatchLabelKeys", Nullable),
];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
static POD_AFFINITY: &Type = &[
    ("RequiredDuringSchedulingIgnoredDuringExecution", REQUIRED, List(POD_TERM)),
    (
        "PreferredDuringSchedulingIgnoredDuringExecution",
        PREFERRED,
        List(&[("Weight", "weight", Number), ("PodAffinityTerm", "podAffinityTerm", Struct(POD_TERM))]),
    ),
];
static NODE_AFFINITY: &Type = &[
    (
        "RequiredDuringSchedulingIgnoredDuringExecution",
        REQUIRED,
        Pointer(&[("NodeSelectorTerms", "nodeSelectorTerms", List(NODE_TERM))]),
    ),
    (
        "PreferredDuringSchedulingIgnoredDuringExecution",
        PREFERRED,
        List(&[("Weight", "weight", Number), ("Preference", "preference", Struct(NODE_TERM))]),
    ),
];

pub static POD_SPEC: &Type = &[
    ("Volumes", "volumes", List(VOLUME)),
    ("InitContainers", "initContainers", List(CONTAINER)),
    ("Containers", "containers", List(CONTAINER)),
    ("EphemeralContainers", "ephemeralContainers", List(EPHEMERAL)),
    ("RestartPolicy", "restartPolicy", Text),
    ("TerminationGracePeriodSeconds", "terminationGracePeriodSeconds", Nullable),
    ("ActiveDeadlineSeconds", "activeDeadlineSeconds", Nullable),
    ("DNSPolicy", "dnsPolicy", Text),
    ("NodeSelector", "nodeSelector", Nullable),
    ("ServiceAccountName", "serviceAccountName", Text),
    ("AutomountServiceAccountToken", "automountServiceAccountToken", Nullable),
    ("NodeName", "nodeName", Text),
    ("SecurityContext", "securityContext", Pointer(POD_SECURITY)),
    ("ImagePullSecrets", "imagePullSecrets", List(NAME)),
    ("Hostname", "hostname", Text),
    ("Subdomain", "subdomain", Text),
    ("SetHostnameAsFQDN", "setHostnameAsFQDN", Nullable),
    (
        "Affinity",
        "affinity",
        Pointer(&[
            ("NodeAffinity", "nodeAffinity", Pointer(NODE_AFFINITY)),
            ("PodAffinity", "podAffinity", Pointer(POD_AFFINITY)),
            ("PodAntiAffinity", "podAntiAffinity", Pointer(POD_AFFINITY)),
        ]),
    ),
    ("SchedulerName", "schedulerName", Text),
    (
        "Tolerations",
        "tolerations",
        List(&[
            ("Key", "key", Text),
            ("Operator", "operator", Text),
            ("Value", "value", Text),
            ("Effect", "effect", Text),
            ("TolerationSeconds", "tolerationSeconds", Nullable),
        ]),
    ),
    ("HostAliases", "hostAliases", List(&[("IP", "ip", Text), ("Hostnames", "hostnames", Nullable)])),
    ("PriorityClassName", "priorityClassName", Text),
    ("Priority", "priority", Nullable),
    ("PreemptionPolicy", "preemptionPolicy", Nullable),
    (
        "DNSConfig",
        "dnsConfig",
        Pointer(&[
            ("Nameservers", "nameservers", Nullable),
            ("Searches", "searches", Nullable),
            ("Options", "options", List(&[("Name", "name", Text), ("Value", "value", Nullable)])),
        ]),
    ),
    ("ReadinessGates", "readinessGates", List(&[("ConditionType", "conditionType", Text)])),
    ("RuntimeClassName", "runtimeClassName", Nullable),
    ("Overhead", "overhead", Nullable),
    ("EnableServiceLinks", "enableServiceLinks", Nullable),
    (
        "TopologySpreadConstraints",
        "topologySpreadConstraints",
        List(&[
            ("MaxSkew", "maxSkew", Number),
            ("TopologyKey", "topologyKey", Text),
            ("WhenUnsatisfiable", "whenUnsatisfiable", Text),
            ("LabelSelector", "labelSelector", External(SELECTOR)),
            ("MinDomains", "minDomains", Nullable),
            ("NodeAffinityPolicy", "nodeAffinityPolicy", Nullable),
            ("NodeTaintsPolicy", "nodeTaintsPolicy", Nullable),
            ("MatchLabelKeys", "matchLabelKeys", Nullable),
        ]),
    ),
    ("OS", "os", Pointer(NAME)),
    ("SchedulingGates", "schedulingGates", List(NAME)),
    (
        "ResourceClaims",
        "resourceClaims",
        List(&[
            ("Name", "name", Text),
            ("ResourceClaimName", "resourceClaimName", Nullable),
            ("ResourceClaimTemplateName", "resourceClaimTemplateName", Nullable),
        ]),
    ),
    ("Resources", "resources", Pointer(RESOURCES)),
    ("HostnameOverride", "hostnameOverride", Nullable),
    ("SchedulingGroup", "schedulingGroup", Pointer(&[("PodGroupName", "podGroupName", Nullable)])),
];
