<?php
// PHP with its curl extension: submit, fetch until it is no longer processing, save the link's file.

function post(string $path, array $body): array
{
    $curl = curl_init(getenv('BASE') . "/api/v6/video/$path");
    curl_setopt_array($curl, [
        CURLOPT_POSTFIELDS => json_encode(['key' => getenv('KEY')] + $body),
        CURLOPT_HTTPHEADER => ['Content-Type: application/json'],
        CURLOPT_RETURNTRANSFER => true,
    ]);
    $answer = json_decode(curl_exec($curl), true);
    if (curl_getinfo($curl, CURLINFO_HTTP_CODE) >= 400) {
        fwrite(STDERR, $answer['message'] . "\n");
        exit(1);
    }
    return $answer;
}

$video = post('text2video', [
    'model_id' => 'wan2.2', 'prompt' => 'a green square growing on a white background', 'output_type' => 'mp4',
    'num_frames' => 17, 'width' => 256, 'height' => 256, 'num_inference_steps' => 20, 'fps' => 8, 'seed' => 7,
]);
while ($video['status'] === 'processing') {
    sleep(1);
    $video = post("fetch/{$video['id']}", []);
}
$link = curl_init($video['output'][0]);
curl_setopt($link, CURLOPT_RETURNTRANSFER, true);
file_put_contents($argv[1] ?? 'video.mp4', curl_exec($link));
