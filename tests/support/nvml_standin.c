/* NVML's calls that the server makes, as a library that the real nvidia-ml-py loads: built and described by
   nvml_standin.py. The environment says what it answers:

   NVML_STANDIN         "name,pci device,major,minor,total MiB,free MiB[,option]...;next GPU;..."; unset: no driver
     util=7               utilization in percent
     mig=off, mig=on      without it the GPU has no MIG and answers "not supported"
     lost=N               the GPU is lost after N calls about it, for good
     fail=CALL:CODE       that call about this GPU gives this NVML error
   NVML_STANDIN_DRIVER  the driver's version
   NVML_STANDIN_FAIL    "CALL:CODE[,CALL:CODE]..." for calls that are about no GPU */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999, MAX = 16 };

static struct gpu {
    char name[64], mig[8], failing[64];
    unsigned pci, total_mib, free_mib, util;
    int major, minor, code, calls_left; /* calls_left < 0: never lost */
} gpus[MAX];
static unsigned num_gpus;

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;

/* What a call about no GPU gives. */
static int of_system(const char *call) {
    const char *at = getenv("NVML_STANDIN_FAIL");
    size_t length = strlen(call);
    for (; at && *at; at = strchr(at, ','), at = at ? at + 1 : at)
        if (!strncmp(at, call, length) && at[length] == ':') return atoi(at + length + 1);
    return OK;
}

/* What a call about a GPU gives. */
static int of_gpu(struct gpu *g, const char *call) {
    if (g->calls_left == 0) return GPU_IS_LOST;
    if (g->calls_left > 0) g->calls_left--;
    return strcmp(call, g->failing) ? OK : g->code;
}
#define ASK(gpu) do { int code = of_gpu(gpu, __func__); if (code != OK) return code; } while (0)
#define ASK_SYSTEM() do { int code = of_system(__func__); if (code != OK) return code; } while (0)

static int parse(char *text, struct gpu *g) {
    int used = 0;
    memset(g, 0, sizeof *g);
    g->calls_left = -1;
    g->util = 7;
    if (sscanf(text, "%63[^,],%x,%d,%d,%u,%u%n", g->name, &g->pci, &g->major, &g->minor, &g->total_mib, &g->free_mib, &used) != 6)
        return INVALID;
    char *rest = NULL;
    for (char *option = strtok_r(text + used, ",", &rest); option; option = strtok_r(NULL, ",", &rest))
        if (sscanf(option, "util=%u", &g->util) != 1 && sscanf(option, "lost=%d", &g->calls_left) != 1
            && sscanf(option, "mig=%7s", g->mig) != 1 && sscanf(option, "fail=%63[^:]:%d", g->failing, &g->code) != 2)
            return INVALID;
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *given = getenv("NVML_STANDIN");
    (void)flags;
    ASK_SYSTEM();
    if (!given) return DRIVER_NOT_LOADED;
    char text[4096], *rest = NULL;
    snprintf(text, sizeof text, "%s", given);
    num_gpus = 0;
    for (char *one = strtok_r(text, ";", &rest); one && num_gpus < MAX; one = strtok_r(NULL, ";", &rest))
        if (parse(one, &gpus[num_gpus++]) != OK) return INVALID;
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { ASK_SYSTEM(); return OK; }
const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    const char *version = getenv("NVML_STANDIN_DRIVER");
    ASK_SYSTEM();
    snprintf(out, size, "%s", version ? version : "580.65.06");
    return OK;
}
int nvmlDeviceGetCount_v2(unsigned *out) { ASK_SYSTEM(); *out = num_gpus; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, struct gpu **out) {
    if (i >= num_gpus) return INVALID;
    ASK(&gpus[i]);
    *out = &gpus[i];
    return OK;
}
int nvmlDeviceGetName(struct gpu *g, char *out, unsigned size) { ASK(g); snprintf(out, size, "%s", g->name); return OK; }
int nvmlDeviceGetCudaComputeCapability(struct gpu *g, int *major, int *minor) {
    ASK(g);
    *major = g->major;
    *minor = g->minor;
    return OK;
}
int nvmlDeviceGetMemoryInfo(struct gpu *g, memory_t *out) {
    ASK(g);
    out->total = (unsigned long long)g->total_mib << 20;
    out->free = (unsigned long long)g->free_mib << 20;
    out->used = out->total - out->free;
    return OK;
}
int nvmlDeviceGetUtilizationRates(struct gpu *g, utilization_t *out) {
    ASK(g);
    out->gpu = g->util;
    out->memory = 0;
    return OK;
}
int nvmlDeviceGetMigMode(struct gpu *g, unsigned *now, unsigned *next) {
    ASK(g);
    if (!*g->mig) return NOT_SUPPORTED;
    *now = *next = !strcmp(g->mig, "on");
    return OK;
}
int nvmlDeviceGetPciInfo_v3(struct gpu *g, pci_t *out) {
    ASK(g);
    memset(out, 0, sizeof *out);
    out->id = g->pci << 16 | 0x10de;
    return OK;
}
int nvmlDeviceGetPowerUsage(struct gpu *g, unsigned *milliwatts) { ASK(g); *milliwatts = 70000; return OK; }
int nvmlDeviceGetPowerManagementLimit(struct gpu *g, unsigned *milliwatts) { ASK(g); *milliwatts = 350000; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(struct gpu *g, unsigned long long *millijoules) {
    ASK(g);
    *millijoules = 5000000;
    return OK;
}
