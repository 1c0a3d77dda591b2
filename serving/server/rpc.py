"""The gRPC side: TF Serving's PredictionService and ModelService, progress of requests, health and reflection."""

import asyncio
import hmac
import inspect
import time
from collections import Counter
from collections.abc import Mapping

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
)

from tfsd.serving.server.daemons import in_daemon
from tfsd.serving.server.service import ParsedRequest, Service, Target, find_signature, request_id_of
from tfsd.serving.wire.errors import KNOWN_KEY, MAX_KNOWN, WARNING_KEY, ServerError
from tfsd.serving.wire.tensors import inputs_of, invalid, output_names, proto_of

PREDICTION = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODELS = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
PROGRESS = "tfsd.Progress"
# TF Serving's health service uses the short names of its services.
HEALTH_NAMES = ("", PREDICTION, MODELS, PROGRESS, "PredictionService", "ModelService")
MAX_MESSAGE = 1024  # characters of an error, as in TF Serving
MAX_RPCS = 512  # at once; each may hold a message of the size limit
# Of these, streams that a client can keep open as long as it likes, by service, so that they leave room for other services.
MAX_STREAMS = {PROGRESS: 128, health.SERVICE_NAME: 64, reflection.SERVICE_NAME: 32}


def _describe_progress():
    """Adds the descriptor of tfsd.Progress to the pool, for reflection."""
    file = descriptor_pb2.FileDescriptorProto(name="tfsd/progress.proto", package="tfsd", syntax="proto3")
    file.dependency.extend([StringValue.DESCRIPTOR.file.name, Struct.DESCRIPTOR.file.name])
    method = file.service.add(name="Progress").method.add(name="Watch", server_streaming=True)
    method.input_type, method.output_type = ".google.protobuf.StringValue", ".google.protobuf.Struct"
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_describe_progress()


def target_of(spec) -> Target:
    """Returns the model that a ModelSpec names."""
    version = spec.version.value if spec.HasField("version") else None
    return Target(spec.name, version, spec.version_label if spec.HasField("version_label") else None)


class Token(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN`, except for health."""

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

        async def refuse(request, context):
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "The token is missing or wrong: send authorization: Bearer TOKEN"
            )

        self._refuse = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation, handler_call_details):
        """Returns the call's handler, or one that refuses the call."""
        sent = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        sent = sent.encode() if isinstance(sent, str) else sent
        free = handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/")
        if free or hmac.compare_digest(sent, self._expected):
            return await continuation(handler_call_details)
        return self._refuse


class Streams(grpc.aio.ServerInterceptor):
    """Limits the number of open streams by service: progress, health and reflection."""

    def __init__(self, most: Mapping[str, int]):
        self._most = most
        self._open: Counter[str] = Counter()

    async def intercept_service(self, continuation, handler_call_details):
        """Returns the call's handler; for streams, one that counts them."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler
        call = handler.stream_stream or handler.unary_stream
        service = handler_call_details.method.split("/")[1]
        most = self._most[service]

        async def counted(request, context):
            if self._open[service] >= most:
                message = f"{most} clients of {service} are connected, the most at once. Try again later."
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
            self._open[service] += 1
            try:
                answers = call(request, context)
                if inspect.isawaitable(answers):  # a handler that calls context.write itself
                    await answers
                    return
                async for answer in answers:
                    await context.write(answer)
            finally:
                self._open[service] -= 1

        make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        return make(counted, handler.request_deserializer, handler.response_serializer)


def parse(request, engine) -> ParsedRequest:
    """Returns the inputs of a PredictRequest, and the outputs that it asks for. Raises: `ServerError`."""
    asked = request.model_spec.signature_name
    name = find_signature(engine, asked)
    if name is None:
        raise ServerError("FAILED_PRECONDITION", f'Serving signature key "{asked[:100]}" not found.')
    signature = engine.signatures[name]
    return ParsedRequest(name, inputs_of(signature, request.inputs), output_names(signature, request.output_filter))


class Calls:
    """The methods of all services."""

    def __init__(self, service: Service):
        self.service, self.models = service, service.models
        self._reloading = asyncio.Lock()

    async def predict(self, request, context):
        """PredictionService.Predict."""
        metadata = dict(context.invocation_metadata() or ())
        remaining = context.time_remaining()
        _require_spec(request)
        with self.service.receive(
            target_of(request.model_spec),
            method="grpc",
            request_id=request_id_of(metadata.get("x-request-id")),
            deadline=None if remaining is None else time.monotonic() + remaining,
        ) as received:
            answer = await received.predict(parse(request, received.engine))
        if answer.warning:
            context.set_trailing_metadata(((WARNING_KEY, answer.warning.encode()),))
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = request.model_spec.name, answer.signature
        response.model_spec.version.value = answer.version
        for name, array in answer.outputs.items():
            response.outputs[name].CopyFrom(proto_of(array))
        return response

    async def get_model_metadata(self, request, context):
        """PredictionService.GetModelMetadata."""
        _require_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field[:100]} is not supported")
        return metadata_of(self.models, target_of(request.model_spec))

    async def get_model_status(self, request, context):
        """ModelService.GetModelStatus."""
        _require_spec(request)
        return self.models.status(*target_of(request.model_spec))

    async def reload(self, request, context):
        """ModelService.HandleReloadConfigRequest."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
            )
        async with self._reloading:  # so that waiting reloads use one thread in total
            await in_daemon(self.models.reload, request.config)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response

    async def watch(self, request, context):
        """tfsd.Progress/Watch: the progress of the request with this id, until its end.

        NOT_FOUND if no request has this id: a client that is too early must try again. (If the server waited for the
        request, anybody could occupy it with ids that do not exist.)
        """
        async for progress in self.service.scheduler.progress.watch(request.value):
            yield struct_of(progress)


def struct_of(progress) -> Struct:
    """Returns the message for a request's progress."""
    message = Struct()
    message.update({"state": progress.state, "done": progress.done, "steps": progress.steps, "position": progress.position})
    return message


def metadata_of(models, target: Target):
    """Returns GetModelMetadataResponse for a model. Raises: `ServerError`."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with models.get(*target) as engine:
        response.model_spec.name, response.model_spec.version.value = engine.name, engine.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in engine.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _require_spec(request):
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


async def _abort(context, error: ServerError):
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[:MAX_MESSAGE] + "...TRUNCATED"
    known = "\n".join(sorted(error.known)[:MAX_KNOWN])  # as metadata, since the message is TensorFlow Serving's
    await context.abort(grpc.StatusCode[error.code], message, ((KNOWN_KEY, known.encode()),) if known else ())


def _unary(call, request_type, response_type):
    async def answer(message: bytes, context):
        try:
            return await call(_parsed(request_type, message), context)
        except ServerError as error:
            await _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(answer, None, response_type.SerializeToString)


def _stream(call, request_type, response_type):
    async def answer(message: bytes, context):
        try:
            async for response in call(_parsed(request_type, message), context):
                yield response
        except ServerError as error:
            await _abort(context, error)

    return grpc.unary_stream_rpc_method_handler(answer, None, response_type.SerializeToString)


def _parsed(kind, message: bytes):
    """Parses a message. grpcio's deserializer would answer UNKNOWN and log a traceback for a damaged one."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise ServerError("INTERNAL", f"The message is not a valid {kind.DESCRIPTOR.full_name}.") from None


def build(service: Service, *, receive_bytes: int, token: str | None = None) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Returns a gRPC server, which has no port yet, and its health service, which says NOT_SERVING."""
    options = [
        ("grpc.max_receive_message_length", receive_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second server on the same port fails instead of taking half of the requests
    ]
    interceptors = [*([Token(token)] if token else []), Streams(MAX_STREAMS)]
    server = grpc.aio.server(interceptors=interceptors, options=options, maximum_concurrent_rpcs=MAX_RPCS)
    calls, status = Calls(service), health.aio.HealthServicer()
    handlers = {
        PREDICTION: {
            "Predict": _unary(calls.predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
            "GetModelMetadata": _unary(
                calls.get_model_metadata,
                get_model_metadata_pb2.GetModelMetadataRequest,
                get_model_metadata_pb2.GetModelMetadataResponse,
            ),
        },
        MODELS: {
            "GetModelStatus": _unary(
                calls.get_model_status, get_model_status_pb2.GetModelStatusRequest, get_model_status_pb2.GetModelStatusResponse
            ),
            "HandleReloadConfigRequest": _unary(
                calls.reload, model_management_pb2.ReloadConfigRequest, model_management_pb2.ReloadConfigResponse
            ),
        },
        PROGRESS: {"Watch": _stream(calls.watch, StringValue, Struct)},
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, made) for name, made in handlers.items()])
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection([*handlers, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server, status


async def set_health(status: health.aio.HealthServicer, serving: bool):
    """Reports to load balancers whether the server takes requests."""
    kinds = health_pb2.HealthCheckResponse
    for name in HEALTH_NAMES:
        await status.set(name, kinds.SERVING if serving else kinds.NOT_SERVING)
